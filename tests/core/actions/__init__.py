"""Tests of actions, bus and worker."""
