"""A tenant's own system: a real HTTP server that keeps what it is sent, and answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True)
class Delivered:
    """One request as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    def verify(self, secret: str) -> dict[str, Any]:
        """The event, if the public library takes the signature. Raises WebhookVerificationError."""
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


Answer = tuple[int, dict[str, str], bytes]


class Receiver:
    """Call `close` at the end. `answer` is asked for each request; `taken` holds those answered 2xx."""

    def __init__(self) -> None:
        self.requests: list[Delivered] = []
        self.taken: list[Delivered] = []
        self.answer: Callable[[Delivered], Answer] = lambda request: (200, {}, b"thanks")
        self.came = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hooks"

    def answers(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.answer = lambda request: (status, headers, body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = Delivered(dict(self.headers.items()), body)
                with receiver.came:
                    receiver.requests.append(request)
                status, headers, text = receiver.answer(request)
                with receiver.came:
                    if 200 <= status < 300:
                        receiver.taken.append(request)
                    receiver.came.notify_all()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Nothing is printed."""

        return Handler
