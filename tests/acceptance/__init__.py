"""The platform from outside: real processes, spoken to over HTTP and WebSocket only."""
