"""Tests of the model providers, over real HTTP and without a database."""
