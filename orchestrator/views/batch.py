"""Batches over HTTP."""

from __future__ import annotations

import functools
import hashlib
import uuid
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from core.actions.bus import execute
from core.api.pages import NUMBERED_PAGE, PAGE, cursor_of, limit_of, number_of
from core.api.parsers import MAX_IMPORT, StrictJSONParser
from core.api.views import KeyView
from core.errors import ValidationFailed
from core.ids import parse_uuid
from core.models import ApiKey
from orchestrator.batches.actions import (
    BatchCancelAction,
    BatchCreateAction,
    BatchList,
    BatchRequest,
    BatchResponse,
    BatchResults,
)
from orchestrator.batches.lines import JSONLines, JSONLinesParser, NDJSONParser, items_of
from orchestrator.batches.results import results_file
from orchestrator.batches.selectors import batch_get, batch_list, batch_response, batch_results
from orchestrator.idempotency import HEADER, KEY, Once
from orchestrator.models import Batch, BatchStatus

_ONCE = OpenApiParameter(
    HEADER,
    KEY,
    OpenApiParameter.HEADER,
    description=(
        "16 to 255 printable ASCII characters, unique per API key. For 24 hours the same request with the"
        " same key has no second effect and gets the first one's answer"
    ),
)
LINES = (JSONLinesParser.media_type, NDJSONParser.media_type)


class BatchesView(KeyView):
    area = "chat"
    max_body = MAX_IMPORT
    parser_classes = [StrictJSONParser, JSONLinesParser, NDJSONParser]

    @extend_schema(
        operation_id="batch_create",
        parameters=[
            _ONCE,
            OpenApiParameter("agent_id", uuid.UUID, description="With JSONL: the agent of lines without one"),
        ],
        request={"application/json": BatchRequest, LINES[0]: OpenApiTypes.STR, LINES[1]: OpenApiTypes.STR},
        responses={202: BatchResponse},
    )
    def post(self, request: Request) -> Response:
        """Run an agent on many things, in the background: up to 10,000 items, 32 MiB.

        JSON, or JSONL with an item a line, as in the list or as the OpenAI batch API has them (`model` is
        an agent's id or slug). Nothing is stored unless every item is valid.
        """
        agent_id, source, told = self._asked(request)
        begin = functools.partial(self._begin, request, agent_id, source)
        key = request.headers.get(HEADER)
        if key is None:
            return begin()
        assert isinstance(request.auth, ApiKey)
        return Once.of(key, told, agent_id, None, request.auth).answer(begin)

    def _asked(self, request: Request) -> tuple[uuid.UUID | None, JSONLines | list[Any], dict[str, Any]]:
        """The batch's agent, its items unread, and what tells this body from another."""
        if isinstance(request.data, JSONLines):
            text = request.query_params.get("agent_id")
            agent_id = parse_uuid(text) if text is not None else None
            if text is not None and agent_id is None:
                raise ValidationFailed(details={"agent_id": "not an id"})
            told = {"agent_id": text, "lines": hashlib.sha256(request.data).hexdigest()}
            return agent_id, request.data, told
        body = self.body(request)
        items = body.get("items")
        # The items are read one by one, so that each can be named.
        head = BatchRequest(**{**body, "items": [_ANY_ITEM]}) if isinstance(items, list) and items else None
        head = head or BatchRequest(**body)
        return head.agent_id, items or [], body

    def _begin(self, request: Request, agent_id: uuid.UUID | None, source: JSONLines | list[Any]) -> Response:
        made = execute(BatchCreateAction(agent_id=agent_id, items=items_of(source, agent_id)))
        return Response(_shown(request, batch_get(str(made.batch_id))), status=202)

    @extend_schema(
        operation_id="batch_list",
        parameters=[*PAGE, OpenApiParameter("status", str, enum=BatchStatus.values)],
        responses={200: BatchList},
    )
    def get(self, request: Request) -> Response:
        """List the tenant's batches, newest first."""
        limit = limit_of(request)
        status = request.query_params.get("status")
        if status not in (None, *BatchStatus.values):
            raise ValidationFailed(details={"status": f"one of {', '.join(BatchStatus.values)}"})
        batches = batch_list(cursor_of(request), limit + 1, status)
        following = str(batches[limit - 1].pk) if len(batches) > limit else None
        return Response({"items": [_shown(request, batch) for batch in batches[:limit]], "next": following})


class BatchView(KeyView):
    area = "chat"

    @extend_schema(operation_id="batch_read", responses={200: BatchResponse})
    def get(self, request: Request, batch_id: str) -> Response:
        """How far a batch is."""
        return Response(_shown(request, batch_get(batch_id)))


class BatchResultsView(KeyView):
    area = "chat"

    @extend_schema(
        operation_id="batch_results",
        parameters=[
            *NUMBERED_PAGE,
            OpenApiParameter(
                "format", str, enum=["json", "jsonl"], description="`jsonl`: all of them, one a line"
            ),
        ],
        responses={200: BatchResults, (200, LINES[0]): OpenApiTypes.STR},
    )
    def get(self, request: Request, batch_id: str) -> HttpResponseBase:
        """What has ended so far, at any time, in the order of the items: a page, or all of it as JSONL.

        Items end in any order: between two looks results may appear before a cursor as well as behind it.
        """
        batch = batch_get(batch_id)
        limit, cursor = limit_of(request), number_of(request, "cursor")
        if _wants_lines(request):
            return results_file(batch)
        results = batch_results(batch.pk, cursor or 0, limit + 1)
        following = str(results[limit - 1].position) if len(results) > limit else None
        items = [result.model_dump(mode="json") for result in results[:limit]]
        return Response({"items": items, "next": following})

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        """`format` is ours, and whoever accepts the file gets its errors, too."""
        negotiated: tuple[BaseRenderer, str] = super().perform_content_negotiation(request, force=True)
        return negotiated


class BatchCancelView(KeyView):
    area = "chat"

    @extend_schema(operation_id="batch_cancel", request=None, responses={200: BatchResponse})
    def post(self, request: Request, batch_id: str) -> Response:
        """Stop a batch: what runs is cancelled, what waits never runs, what has ended stays.

        `cancelling` until the last run has stopped. A batch that has ended answers 409 (`CannotCancel`).
        """
        batch = batch_get(batch_id)
        execute(BatchCancelAction(batch_id=batch.pk, by=self.actor(request)))
        batch.refresh_from_db()
        return Response(_shown(request, batch))


_ANY_ITEM = {"message": "-"}


def _shown(request: Request, batch: Batch) -> dict[str, Any]:
    results_url = request.build_absolute_uri(f"/api/v1/batch/{batch.pk}/results")
    return batch_response(batch, results_url).model_dump(mode="json")


def _wants_lines(request: Request) -> bool:
    """Raises ValidationFailed for a format that there is not."""
    wanted = request.query_params.get("format")
    if wanted not in (None, "json", "jsonl"):
        raise ValidationFailed(details={"format": "one of json, jsonl"})
    accepted = request.headers.get("accept", "")
    return wanted == "jsonl" or (wanted is None and any(kind in accepted for kind in LINES))
