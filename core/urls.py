"""Addresses of the ground floor."""

from django.urls import path

from core.api.audit import AuditView

urlpatterns = [
    path("api/v1/audit", AuditView.as_view()),
]
