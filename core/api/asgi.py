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

THREADS = 32  # as many as the web's pool has database connections


class ThreadedASGIHandler(ASGIHandler):
    """Runs middleware and view together in one thread of a bounded pool.

    Django's own handler changes threads at every middleware that is not a coroutine, and starts a
    thread for each request: measured, half of a request's CPU.
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
        return await respond(request)

    def _respond(self, request: HttpRequest) -> HttpResponseBase:
        try:
            return self.get_response(request)
        finally:
            close_old_connections()
