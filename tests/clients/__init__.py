"""Clients of other languages, against the running platform: `make clients`."""
