"""The front door's handlers, a module per domain."""

from orchestrator.handlers import chat, services, webhooks, websocket

__all__ = ["chat", "services", "webhooks", "websocket"]
