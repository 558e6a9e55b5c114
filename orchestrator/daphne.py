"""What Daphne's WebSocket protocol is told beyond its command line.

Imported before Daphne makes its server; another ASGI server never sees it.
"""

from __future__ import annotations

from typing import Any

from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol


class SessionProtocol(WebSocketProtocol):  # type: ignore[misc]
    """Refuses with the codes of the contract."""

    def connectionMade(self) -> None:
        super().connectionMade()
        # Else a frame that is too large or no UTF-8 ends the connection without its close code.
        self.failByDrop = False

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        if reason.startswith("HTTP Origin header invalid"):
            code = 403
        super().failHandshake(reason, code, responseHeaders)


def install() -> None:
    """Make every socket of this process speak so."""
    WebSocketFactory.protocol = SessionProtocol
