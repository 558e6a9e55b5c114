"""What a tenant has used and what it cost, over HTTP."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import BaseModel
from rest_framework.request import Request
from rest_framework.response import Response

from core.api.pages import LIMIT, limit_of
from core.api.renderers import OrjsonRenderer
from core.api.views import KeyView
from core.errors import ValidationFailed
from core.models import UsageRecord
from core.reports import DIMENSIONS, FIGURES, as_csv, columns, usage_report

DAYS, MOST_DAYS = 30, 400
MOST_LINES = 50_000  # of a CSV, which comes whole
BY = {
    "type": "array",
    "items": {"type": "string", "enum": list(DIMENSIONS)},
    "uniqueItems": True,
    "minItems": 1,
}


class UsageLine(BaseModel):
    """Sums of provider calls. What the report is not divided by is absent.

    `calls` are `exact` (as the provider reported), `estimated` (cut, or the provider kept silent) or
    `unknown` (nobody knows what they took; their tokens are in no sum). `cost` is in US dollars, of the
    calls whose price is known; `unpriced` counts the others, and it is null where there is no price at
    all. The cached tokens are among those of the prompt.
    """

    day: datetime.date | None = None
    agent_id: uuid.UUID | None = None
    provider: str | None = None
    model: str | None = None
    end_user: str | None = None
    calls: int
    exact: int
    estimated: int
    unknown: int
    unpriced: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: str | None


class UsageList(BaseModel):
    """A page of the report; `next` is the cursor of the following one, or null."""

    items: list[UsageLine]
    next: str | None


class CsvRenderer(OrjsonRenderer):
    """Whoever asks for a table is answered one by the view; errors stay JSON."""

    media_type = "text/csv"
    format = "csv"


class UsageView(KeyView):
    area = "usage"
    renderer_classes = [OrjsonRenderer, CsvRenderer]

    @extend_schema(
        operation_id="usage_report",
        parameters=[
            OpenApiParameter("from", datetime.date, description=f"The first day, UTC; {DAYS} days in all"),
            OpenApiParameter("to", datetime.date, description="The last day, UTC; today"),
            OpenApiParameter("by", BY, explode=False, description="day,agent,model without it"),
            LIMIT,
            OpenApiParameter("cursor", str, pattern="^[A-Za-z0-9_-]+$"),
            OpenApiParameter("format", str, enum=["json", "csv"], description="Or by the header Accept"),
        ],
        responses={(200, "application/json"): UsageList, (200, "text/csv"): OpenApiTypes.STR},
    )
    def get(self, request: Request) -> Response | HttpResponse:
        """Sum up tokens and cost by day, agent, model and end user; a CSV comes whole, without pages."""
        by = _by(request)
        last = _day(request, "to") or datetime.datetime.now(datetime.UTC).date()
        first = _day(request, "from") or last - datetime.timedelta(days=DAYS - 1)
        if not 0 <= (last - first).days < MOST_DAYS:
            raise ValidationFailed(details={"from": f"at most {MOST_DAYS} days up to the day of `to`"})
        rows = UsageRecord.objects.all()
        limit, cursor = limit_of(request), request.query_params.get("cursor")
        if request.accepted_renderer.format == "csv":
            if cursor is not None:
                raise ValidationFailed(details={"cursor": "a CSV comes whole"})
            report = usage_report(rows, by, first, last, limit=MOST_LINES)
            if report.next is not None:
                raise ValidationFailed(details={"by": f"more than {MOST_LINES} lines: ask for fewer days"})
            return _table(as_csv([*columns(by), *FIGURES], report.lines), first, last)
        try:
            report = usage_report(rows, by, first, last, limit=limit, after=cursor)
        except ValueError as error:
            raise ValidationFailed(details={"cursor": "not a cursor of this report"}) from error
        return Response({"items": report.lines, "next": report.next})


def _table(text: str, first: datetime.date, last: datetime.date) -> HttpResponse:
    response = HttpResponse(text, content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="usage-{first}-{last}.csv"'
    return response


def _by(request: Request) -> tuple[str, ...]:
    asked = request.query_params.get("by", "day,agent,model").split(",")
    if not set(asked) <= DIMENSIONS.keys() or len(set(asked)) < len(asked):
        raise ValidationFailed(details={"by": f"some of {', '.join(DIMENSIONS)}, each once"})
    # Whatever the order in which they were asked for.
    return tuple(name for name in DIMENSIONS if name in asked)


def _day(request: Request, name: str) -> datetime.date | None:
    text: Any = request.query_params.get(name)
    if text is None:
        return None
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        day = datetime.date.min
    if not 2000 <= day.year < 9000:
        raise ValidationFailed(details={name: "a day as in ISO 8601: 2026-11-20"})
    return day
