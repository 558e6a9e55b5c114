"""Addresses of agent management."""

from django.urls import path

from agents import views

urlpatterns = [
    path("api/v1/agents", views.AgentsView.as_view()),
    path("api/v1/agents/import", views.ImportView.as_view()),
    path("api/v1/agents/bulk", views.BulkUpdatesView.as_view()),
    path("api/v1/agents/bulk/<str:task_id>", views.BulkUpdateView.as_view()),
    path("api/v1/agents/bulk/<str:task_id>/cancel", views.BulkCancelView.as_view()),
    path("api/v1/agents/<str:agent_id>", views.AgentView.as_view()),
    path("api/v1/agents/<str:agent_id>/versions", views.VersionsView.as_view()),
    path("api/v1/agents/<str:agent_id>/versions/<str:number>", views.VersionView.as_view()),
    path("api/v1/agents/<str:agent_id>/diff", views.DiffView.as_view()),
    path("api/v1/agents/<str:agent_id>/publish", views.PublishView.as_view()),
    path("api/v1/agents/<str:agent_id>/rollback", views.RollbackView.as_view()),
    path("api/v1/agents/<str:agent_id>/restore", views.RestoreView.as_view()),
    path("api/v1/agents/<str:agent_id>/suspend", views.SuspendView.as_view()),
    path("api/v1/agents/<str:agent_id>/unsuspend", views.UnsuspendView.as_view()),
    path("api/v1/agents/<str:agent_id>/duplicate", views.DuplicateView.as_view()),
    path("api/v1/agents/<str:agent_id>/export", views.ExportView.as_view()),
    path("api/v1/templates", views.TemplatesView.as_view()),
    path("api/v1/templates/<str:template_id>", views.TemplateView.as_view()),
    path("api/v1/templates/<str:template_id>/instantiate", views.TemplateInstantiateView.as_view()),
]
