"""Tests of queue names and publishing."""
