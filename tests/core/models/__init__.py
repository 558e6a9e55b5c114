"""Tests of the ground floor's tables."""
