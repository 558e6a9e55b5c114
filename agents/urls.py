"""Addresses of agent management."""

from django.urls import path

from agents.views import AgentsView, AgentView

urlpatterns = [
    path("api/v1/agents", AgentsView.as_view()),
    path("api/v1/agents/<str:agent_id>", AgentView.as_view()),
]
