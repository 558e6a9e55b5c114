"""Tests of what every HTTP edge shares."""
