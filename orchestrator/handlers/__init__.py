"""The front door's handlers, a module per domain."""

from orchestrator.handlers import batches, chat, executions, services, webhooks, websocket

__all__ = ["batches", "chat", "executions", "services", "webhooks", "websocket"]
