"""Agent management over HTTP."""

from agents.views.agents import (
    AgentsView,
    AgentView,
    DuplicateView,
    ExportView,
    ImportView,
    RestoreView,
    SuspendView,
    UnsuspendView,
)
from agents.views.bulk import BulkCancelView, BulkUpdatesView, BulkUpdateView
from agents.views.templates import TemplateInstantiateView, TemplatesView, TemplateView
from agents.views.versions import DiffView, PublishView, RollbackView, VersionsView, VersionView

__all__ = [
    "AgentView",
    "AgentsView",
    "BulkCancelView",
    "BulkUpdateView",
    "BulkUpdatesView",
    "DiffView",
    "DuplicateView",
    "ExportView",
    "ImportView",
    "PublishView",
    "RestoreView",
    "RollbackView",
    "SuspendView",
    "TemplateInstantiateView",
    "TemplateView",
    "TemplatesView",
    "UnsuspendView",
    "VersionView",
    "VersionsView",
]
