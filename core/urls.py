"""Addresses of the ground floor."""

from django.urls import path

from core.api.audit import AuditView
from core.api.end_users import EndUserSecretsView, EndUserSecretView
from core.api.usage import UsageView

urlpatterns = [
    path("api/v1/audit", AuditView.as_view()),
    path("api/v1/usage", UsageView.as_view()),
    path("api/v1/end-user-secrets", EndUserSecretsView.as_view()),
    path("api/v1/end-user-secrets/<str:secret_id>", EndUserSecretView.as_view()),
]
