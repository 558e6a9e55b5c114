"""Tests of tenant scopes."""
