"""Tests of the pieces of a socket."""
