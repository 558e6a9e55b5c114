"""Django's HTTP handler, with one thread hop a request."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.signals import request_started
from django.db import close_old_connections, reset_queries
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from core.api.late import LateResponse

THREADS = 32  # as many as the web's pool has database connections


class ThreadedASGIHandler(ASGIHandler):
    """Runs middleware and view together in one thread of a bounded pool.

    Django's own handler changes threads at every middleware that is not a coroutine, and starts a
    thread for each request: measured, half of a request's CPU.

    An answer that comes late is waited for without a thread. One that a client has not waited for is
    closed, also when its view has still to make it: a thread cannot be stopped.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="request")
        # What these do between requests is done below, in the thread that has the connection.
        request_started.disconnect(reset_queries)
        request_started.disconnect(close_old_connections)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.handle(scope, receive, send)

    def create_request(self, scope: Any, body_file: IO[bytes]) -> Any:
        """A body that came in chunks has a length too, now that it is here: DRF reads none without."""
        request, refusal = super().create_request(scope, body_file)
        if request is not None and "CONTENT_LENGTH" not in request.META:
            request.META["CONTENT_LENGTH"] = str(body_file.seek(0, os.SEEK_END))
            body_file.seek(0)
        return request, refusal

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        respond = sync_to_async(self._respond, thread_sensitive=False, executor=self._threads)
        wanted = _Wanted()
        try:
            response = await respond(request, wanted)
            if isinstance(response, LateResponse):
                await response.arrive()
        except BaseException:  # above all the word that the client has gone
            wanted.no_more()
            raise
        return response

    def _respond(self, request: HttpRequest, wanted: _Wanted) -> HttpResponseBase:
        try:
            return wanted.made(self.get_response(request))
        finally:
            close_old_connections()


class _Wanted:
    """Whether a client still waits for an answer. One of the two who meet here sees what the other did."""

    __slots__ = ("_answer", "_by_nobody")

    def __init__(self) -> None:
        self._answer: HttpResponseBase | None = None
        self._by_nobody = False

    def made(self, answer: HttpResponseBase) -> HttpResponseBase:
        self._answer = answer
        if self._by_nobody:
            answer.close()
        return answer

    def no_more(self) -> None:
        self._by_nobody = True
        if self._answer is not None:
            self._answer.close()
