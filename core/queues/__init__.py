"""Queue names and the way to them."""
