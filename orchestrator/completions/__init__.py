"""Agents behind the OpenAI-compatible API: its requests, answers and errors."""
