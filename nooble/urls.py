"""Every address of the house, mounted from the packages that answer it."""

from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from nooble.reference import asyncapi

urlpatterns = [
    path("", include("orchestrator.urls")),
    path("", include("agents.urls")),
    path("", include("execution.urls")),
    path("", include("core.urls")),
    path("api/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs", SpectacularSwaggerSplitView.as_view(url_name="schema"), name="docs"),
    path("asyncapi.json", asyncapi.serve),
    path("admin/queues/", include("core.admin.queues")),
    path("admin/usage/", include("core.admin.usage_report")),
    path("admin/", admin.site.urls),
]
handler400 = "core.api.errors.bad_request"
handler404 = "core.api.errors.not_found"
handler500 = "core.api.errors.server_error"
