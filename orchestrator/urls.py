"""Addresses of the front door."""

from django.urls import path

from orchestrator.views import chat, health, pages, sessions, stream, webhooks

urlpatterns = [
    path("", pages.FrontPageView.as_view()),
    path("favicon.ico", pages.FaviconView.as_view()),
    path("chat/<str:agent_id>", pages.ChatPageView.as_view()),
    path("api/v1/chat/message", chat.SendMessageView.as_view()),
    path("api/v1/chat/status/<str:task_id>", chat.StatusView.as_view()),
    path("api/v1/chat/cancel/<str:task_id>", chat.CancelView.as_view()),
    path("api/v1/chat/stream/<str:task_id>", stream.TaskStreamView.as_view()),
    path("api/chat/send", chat.SendMessageAliasView.as_view()),
    path("api/chat/status", chat.StatusAliasView.as_view()),
    path("api/chat/cancel", chat.CancelAliasView.as_view()),
    path("api/v1/sessions/<str:session_id>/messages", sessions.SessionMessagesView.as_view()),
    path("api/v1/webhooks", webhooks.WebhooksView.as_view()),
    path("api/v1/webhooks/deliveries/<str:delivery_id>/replay", webhooks.ReplayView.as_view()),
    path("api/v1/webhooks/<str:webhook_id>", webhooks.WebhookView.as_view()),
    path("api/v1/webhooks/<str:webhook_id>/deliveries", webhooks.DeliveriesView.as_view()),
    path("api/v1/webhooks/<str:webhook_id>/rotate", webhooks.WebhookRotateView.as_view()),
    path("health", health.HealthView.as_view()),
    path("health/detailed", health.DetailedHealthView.as_view()),
    path("ws/stats", health.SocketStatsView.as_view()),
]
