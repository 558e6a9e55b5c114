"""Measurements of the running platform, and the fake model they use."""
