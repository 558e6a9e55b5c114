"""Isolation, proved by generation: every door is tried with another tenant's ids.

Routes, sockets, actions and pages of the console come from the code. `routes.py`, `sockets.py` and
`actions.py` say for each how it is tried: a new one without a line there fails the suite.
"""
