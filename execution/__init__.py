"""The workshop: runs one agent once; owns no tables."""
