"""The front door's handlers, a module per domain."""

from orchestrator.handlers import chat, websocket

__all__ = ["chat", "websocket"]
