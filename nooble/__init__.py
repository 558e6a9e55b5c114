"""The roof: wiring only, no domain line."""
