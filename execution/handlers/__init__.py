"""The workshop's handlers, a module per thing: runs, budgets, tenants' providers, checks of agents."""

from execution.handlers import budgets, checks, providers, runs

__all__ = ["budgets", "checks", "providers", "runs"]
