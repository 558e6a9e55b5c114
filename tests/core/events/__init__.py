"""Tests of the session log and its events."""
