"""The record of changes over HTTP."""

from __future__ import annotations

import datetime
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import BaseModel
from rest_framework.request import Request
from rest_framework.response import Response

from core.api.pages import NUMBERED_PAGE, limit_of, number_of, text_of
from core.api.views import KeyView
from core.errors import ValidationFailed
from core.models import AuditEntry
from core.models.audit import AuditSource
from core.selectors import audit_list

LONGEST = 160  # characters of a filter
TEXT = {"type": "string", "maxLength": LONGEST}


class AuditResource(BaseModel):
    """One change. `before` and `after` hold the fields that differ, without secrets.

    `ip` is where the tenant's own software called from; of others it is null.
    """

    id: int
    verb: str
    object_type: str
    object_id: str
    actor: str
    source: AuditSource
    request_id: str
    ip: str | None
    before: dict[str, Any]
    after: dict[str, Any]
    created_at: datetime.datetime


class AuditList(BaseModel):
    """A page of the record; `next` is the cursor of the following one, or null."""

    items: list[AuditResource]
    next: str | None


class AuditView(KeyView):
    area = "agents"

    @extend_schema(
        operation_id="audit_list",
        parameters=[
            *NUMBERED_PAGE,
            OpenApiParameter("object", TEXT, description="An object's id, or a type: agent, api_key, …"),
            OpenApiParameter("actor", TEXT, description="Who it was: key:…, user:…"),
            OpenApiParameter("since", datetime.datetime, description="Nothing older."),
        ],
        responses={200: AuditList},
    )
    def get(self, request: Request) -> Response:
        """List the changes of what is the tenant's, newest first."""
        limit = limit_of(request)
        entries = audit_list(
            number_of(request, "cursor"),
            limit + 1,
            subject=text_of(request, "object", LONGEST) or "",
            actor=text_of(request, "actor", LONGEST) or "",
            since=_since(request),
        )
        following = str(entries[limit - 1].pk) if len(entries) > limit else None
        items = [_resource(entry).model_dump(mode="json") for entry in entries[:limit]]
        return Response({"items": items, "next": following})


def _resource(entry: AuditEntry) -> AuditResource:
    own = entry.source in (AuditSource.API, AuditSource.SOCKET)
    return AuditResource(
        id=entry.pk,
        verb=entry.verb,
        object_type=entry.object_type,
        object_id=entry.object_id,
        actor=entry.actor,
        source=AuditSource(entry.source),
        request_id=entry.request_id,
        ip=entry.ip if own else None,
        before=entry.before,
        after=entry.after,
        created_at=entry.created_at,
    )


def _since(request: Request) -> datetime.datetime | None:
    text = request.query_params.get("since")
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValidationFailed(details={"since": "a time as in ISO 8601"}) from None
    return moment if timezone.is_aware(moment) else moment.replace(tzinfo=datetime.UTC)
