"""The rules of agent management, a module per thing that one does with agents."""

from agents.handlers import agents, bulk, moves, suspension, templates, validation, versions

__all__ = ["agents", "bulk", "moves", "suspension", "templates", "validation", "versions"]
