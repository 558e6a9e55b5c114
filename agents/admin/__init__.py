"""Agents and templates in the console: everything that is saved goes through verbs."""

from agents.admin.agents import AgentAdmin
from agents.admin.names import names_of
from agents.admin.templates import AgentTemplateAdmin

__all__ = ["AgentAdmin", "AgentTemplateAdmin", "names_of"]
