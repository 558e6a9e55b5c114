"""How much of a request's body Daphne takes: by itself it reads the whole of it before anybody is asked.

What is longer than its route takes goes to its view at once, without the rest: the view refuses it by its
length, in the words of every refusal. The rest is read and thrown away for a while, since a client that
still sends would not see the answer of one that has closed.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from django.conf import settings
from django.urls import Resolver404, resolve
from twisted.web.http import HTTPChannel

from core.api.parsers import MAX_BODY

LINGER_SECONDS = 5  # in which a client may finish what it is sending


def room_for(uri: bytes) -> int:
    """Bytes of a body that the route takes: what its view says in `max_body`."""
    try:
        view = resolve(unquote(uri.partition(b"?")[0].decode("ascii"))).func
    except (Resolver404, UnicodeDecodeError):
        return MAX_BODY
    found: int = getattr(getattr(view, "cls", view), "max_body", settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
    return found


class BoundedChannel(HTTPChannel):
    """One connection, request after request."""

    _room: int | None = None  # for the body that is coming in; None where its length is known to fit
    _is_refused = False

    def allHeadersReceived(self) -> None:
        request = self.requests[-1]
        # Daphne lets it move the whole site elsewhere, and anybody can send it.
        request.requestHeaders.removeHeader(b"daphne-root-path")
        # Twisted reads forms on the loop, for nobody, and answers a broken one by itself.
        request._parsePOSTFormSubmission = False
        if self.length is None or self.length > MAX_BODY:
            room = room_for(self._path)  # type: ignore[arg-type]  # Twisted's own annotation is wrong
            if self.length is None:
                self._room = room
            elif self.length > room:
                request.requestHeaders.removeHeader(b"expect")  # nobody is asked to go on
                self.length = 0  # so that nothing is waited for; the header still says how long it is
                self._is_refused = True
        super().allHeadersReceived()  # type: ignore[no-untyped-call]
        if self._is_refused:
            self._answer_last()

    def rawDataReceived(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().rawDataReceived(data)
        if self._room is not None and self.requests[-1].content.tell() > self._room:
            self._is_refused = True
            self._answer_last()
            self.allContentReceived()

    def allContentReceived(self) -> None:
        self._room = None
        super().allContentReceived()  # type: ignore[no-untyped-call]

    def loseConnection(self) -> None:
        if not self._is_refused:
            super().loseConnection()  # type: ignore[no-untyped-call]
            return
        transport: Any = self.transport
        transport.loseWriteConnection()
        self._abortingCall = self.callLater(  # type: ignore[no-untyped-call]
            LINGER_SECONDS, self.forceAbortClient
        )

    def _answer_last(self) -> None:
        """After this answer the connection ends."""
        self.persistent = 0
        self.requests[-1].responseHeaders.setRawHeaders(b"Connection", [b"close"])
