"""The rules of conversations: what is said, and the sessions in which it is said."""

from conversations.handlers import messages, sessions

__all__ = ["messages", "sessions"]
