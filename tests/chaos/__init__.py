"""Faults on purpose: what is killed, frozen, cut and flushed, and the numbers that must stay 0."""
