"""Addresses of the sockets."""

from django.urls import path, re_path

from orchestrator.consumers import SessionConsumer, UnknownConsumer

websocket_urlpatterns = [
    path("ws/<str:tenant_id>/<str:session_id>", SessionConsumer.as_asgi()),
    re_path(r"", UnknownConsumer.as_asgi()),
]
