"""Every address of the house, mounted from the packages that answer it."""

from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

urlpatterns = [
    path("", include("orchestrator.urls")),
    path("", include("agents.urls")),
    path("", include("execution.urls")),
    path("", include("core.urls")),
    path("api/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("admin/queues/", include("core.admin.queues")),
    path("admin/", admin.site.urls),
]
handler400 = "core.api.errors.bad_request"
handler404 = "core.api.errors.not_found"
handler500 = "core.api.errors.server_error"
