"""Addresses of the sockets."""

from django.urls import path, re_path

from orchestrator.consumers import (
    SessionConsumer,
    TaskUpdatesConsumer,
    TenantUpdatesConsumer,
    UnknownConsumer,
)

websocket_urlpatterns = [
    path("ws/task_updates", TaskUpdatesConsumer.as_asgi()),
    path("ws/tenants/<str:tenant_id>/updates", TenantUpdatesConsumer.as_asgi()),
    path("ws/<str:tenant_id>/<str:session_id>", SessionConsumer.as_asgi()),
    re_path(r"", UnknownConsumer.as_asgi()),
]
