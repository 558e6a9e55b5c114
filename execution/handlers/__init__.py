"""The workshop's handlers, a module per thing: runs, tenants' providers, checks of agents."""

from execution.handlers import checks, providers, runs

__all__ = ["checks", "providers", "runs"]
