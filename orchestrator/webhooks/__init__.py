"""Telling tenants' own systems what happens: signed as Standard Webhooks, tried for three days."""
