"""The front door: chat over HTTP and WebSocket, sessions, health."""
