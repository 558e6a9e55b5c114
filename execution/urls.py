"""Addresses of the workshop."""

from django.urls import path

from execution.budget_views import BudgetsView, BudgetView
from execution.views import AgentValidateView, ProvidersView, ProviderView

urlpatterns = [
    path("api/v1/budgets", BudgetsView.as_view()),
    path("api/v1/budgets/<str:budget_id>", BudgetView.as_view()),
    path("api/v1/providers", ProvidersView.as_view()),
    path("api/v1/providers/<str:name>", ProviderView.as_view()),
    path("api/v1/agents/<str:agent_id>/validate", AgentValidateView.as_view()),
]
