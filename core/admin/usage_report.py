"""What was used and what it cost, in charts: by day, agent, model and tenant."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from django.contrib import admin, messages
from django.db.models import F, QuerySet
from django.db.models.functions import TruncDate
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.formats import date_format
from django.utils.text import Truncator
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from core.admin.console import counted, seen_by, shown_dollars
from core.ids import is_slug
from core.models import Tenant, UsageRecord
from core.reports import FIGURES, as_csv, columns, usage_report, within

app_name = "usage"

RANGES = (7, 30, 90)
SHOWN = 10  # bars of a chart, the largest
LABEL = 24  # characters beside a bar
TENANTS = 200  # to choose from
MOST_LINES = 50_000  # of a table to take away

# Who knows agents' names; set by a higher floor.
namers: list[Callable[[Iterable[uuid.UUID]], Mapping[uuid.UUID, str]]] = []

PROMPT, COMPLETION, COST = "var(--color-primary-300)", "var(--color-primary-600)", "#0d9488"
_TICKS = {"color": "#9ca3af", "maxTicksLimit": 8}
_COMMON = {
    "responsive": True,
    "maintainAspectRatio": False,
    "animation": False,
    "plugins": {"legend": {"labels": {"color": "#9ca3af", "boxWidth": 12}}},
}


@seen_by("core.view_usagerecord")
def report(request: HttpRequest) -> HttpResponse:
    days = _days(request)
    last = datetime.datetime.now(datetime.UTC).date()
    first = last - datetime.timedelta(days=days - 1)
    tenant = request.GET.get("tenant", "")
    rows = UsageRecord.unscoped.all()
    if is_slug(tenant):
        rows = rows.filter(tenant_id=tenant)
    if request.GET.get("format") == "csv":
        return _csv(request, rows, first, last)
    rows = within(rows, first, last)
    context = {
        "title": _("Usage"),
        "ranges": [(choice, choice == days) for choice in RANGES],
        "days": days,
        "tenant": tenant,
        "tenants": list(Tenant.objects.order_by("pk").values_list("pk", flat=True)[:TENANTS]),
        **_figures(rows, [first + datetime.timedelta(days=number) for number in range(days)]),
    }
    return TemplateResponse(
        request, "core/admin/usage_report.html", {**admin.site.each_context(request), **context}
    )


def _days(request: HttpRequest) -> int:
    asked = request.GET.get("days", "")
    return int(asked) if asked in map(str, RANGES) else RANGES[1]


def _csv(
    request: HttpRequest, rows: QuerySet[UsageRecord], first: datetime.date, last: datetime.date
) -> HttpResponse:
    by = ("day", "agent", "model", "end_user")
    found = usage_report(rows, by, first, last, limit=MOST_LINES)
    if found.next is not None:
        messages.error(request, gettext("The table would be too long: choose a tenant, or fewer days."))
        return HttpResponseRedirect(reverse("usage:report"))
    text = as_csv([*columns(by), *FIGURES], found.lines)
    response = HttpResponse(text, content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="usage-{first}-{last}.csv"'
    return response


def _figures(rows: QuerySet[UsageRecord], days: list[datetime.date]) -> dict[str, Any]:
    by_day: dict[datetime.date, Any] = {
        line["day"]: line
        for line in rows.annotate(day=TruncDate("created_at", tzinfo=datetime.UTC))
        .values("day")
        .annotate(**FIGURES)
    }
    total = rows.aggregate(**FIGURES)
    agents = _largest(rows, "agent_id")
    names = {
        key: name for namer in namers for key, name in namer(agent["agent_id"] for agent in agents).items()
    }
    for agent in agents:
        agent["name"] = names.get(agent["agent_id"]) or str(agent["agent_id"])[:8]
    models = _largest(rows, "provider", "model")
    for model in models:
        model["name"] = f"{model['provider']} / {model['model']}"
    return {
        "totals": _totals(total),
        "is_empty": not total["calls"],
        "by_day": _day_charts(days, by_day),
        "parts": [
            (_("By agent"), _("Agent"), _bars(agents), _table(agents)),
            (_("By model"), _("Model"), _bars(models), _table(models)),
        ],
    }


def _totals(total: dict[str, Any]) -> list[tuple[Any, str]]:
    return [
        (_("Calls"), counted(total["calls"])),
        (_("Prompt tokens"), counted(total["prompt_tokens"] or 0)),
        (_("Completion tokens"), counted(total["completion_tokens"] or 0)),
        (_("Cost"), shown_dollars(total["cost"])),
        (_("Calls estimated"), counted(total["estimated"])),
        (_("Calls unknown"), counted(total["unknown"])),
        (_("Calls without a price"), counted(total["unpriced"])),
    ]


def _largest(rows: QuerySet[UsageRecord], *names: str) -> list[dict[str, Any]]:
    """The dearest, then the hungriest."""
    found = rows.values(*names).annotate(**FIGURES)
    return list(found.order_by(F("cost").desc(nulls_last=True), "-prompt_tokens", *names)[:SHOWN])


def _day_charts(days: list[datetime.date], by_day: dict[datetime.date, Any]) -> list[dict[str, Any]]:
    labels = [date_format(day, "j M") for day in days]
    axes = {"x": {"ticks": _TICKS, "grid": {"display": False}}, "y": {"beginAtZero": True, "ticks": _TICKS}}
    stacked = {name: {**axis, "stacked": True} for name, axis in axes.items()}

    def daily(label: str, colour: str, name: str) -> dict[str, Any]:
        return _set(label, colour, [float(by_day[day][name] or 0) if day in by_day else 0 for day in days])

    tokens = [
        daily(gettext("Prompt tokens"), PROMPT, "prompt_tokens"),
        daily(gettext("Completion tokens"), COMPLETION, "completion_tokens"),
    ]
    cost = [daily(gettext("US dollars"), COST, "cost")]
    return [
        _chart(_("Tokens by day (UTC)"), labels, tokens, {**_COMMON, "scales": stacked}),
        _chart(_("Cost by day (UTC)"), labels, cost, {**_COMMON, "scales": axes}),
    ]


def _bars(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens, a bar a line; what they cost stands in the table."""
    labels = [Truncator(line["name"]).chars(LABEL) for line in lines]
    sets = [
        _set(gettext("Prompt tokens"), PROMPT, [line["prompt_tokens"] for line in lines]),
        _set(gettext("Completion tokens"), COMPLETION, [line["completion_tokens"] for line in lines]),
    ]
    axes = {
        "x": {"stacked": True, "beginAtZero": True, "ticks": {**_TICKS, "maxTicksLimit": 4}},
        "y": {"stacked": True, "ticks": {"color": "#9ca3af"}, "grid": {"display": False}},
    }
    chart = _chart("", labels, sets, {**_COMMON, "indexAxis": "y", "scales": axes})
    return {**chart, "height": 90 + 26 * len(lines)}


def _set(label: str, colour: str, data: list[Any]) -> dict[str, Any]:
    return {"label": label, "backgroundColor": colour, "data": data, "borderRadius": 3, "maxBarThickness": 28}


def _chart(
    title: Any, labels: list[str], sets: list[dict[str, Any]], options: dict[str, Any]
) -> dict[str, Any]:
    data = json.dumps({"labels": labels, "datasets": sets})
    return {"title": title, "data": data, "options": json.dumps(options)}


def _table(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": line["name"],
            "calls": counted(line["calls"]),
            "prompt": counted(line["prompt_tokens"]),
            "completion": counted(line["completion_tokens"]),
            "cost": _cost(line["cost"], line["unpriced"]),
        }
        for line in lines
    ]


def _cost(cost: Decimal | None, unpriced: int) -> str:
    """Where only some calls have a price, the sum is the least that it was."""
    shown = shown_dollars(cost)
    return f"≥ {shown}" if cost is not None and unpriced else shown


urlpatterns = [path("", report, name="report")]
