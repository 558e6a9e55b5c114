"""The broker: how messages reach workers."""
