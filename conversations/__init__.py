"""The memory: sessions, messages, history."""
