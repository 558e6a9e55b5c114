"""HTTP in, actions, HTTP out."""
