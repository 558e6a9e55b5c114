"""Scenarios that take too long for every test run."""
