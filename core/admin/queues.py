"""Queues as they are now, and dead letters. Read from the broker, not from rows."""

from __future__ import annotations

from typing import Any

import redis
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.translation import gettext_lazy as _

from core.admin.console import counted, duration, seen_by
from core.admin.roles import is_operator, roles_of
from core.broker import figures
from core.ids import SYSTEM_TENANT
from core.queues.names import DOMAINS

app_name = "queues"

TENANTS = 50
DEAD_LETTERS = 50
# Why a letter is dead, as the transport writes it.
REASONS = {
    "not a message": _("It is no queue message."),
    "not a message that a worker can read": _("No worker can read it."),
    "rejected": _("The worker knows no such task, or its task refused it."),
}


def _page(request: HttpRequest, template: str, **context: Any) -> HttpResponse:
    return TemplateResponse(request, template, {**admin.site.each_context(request), **context})


def _domain(request: HttpRequest) -> str:
    asked = request.GET.get("domain", "")
    return asked if asked in DOMAINS else DOMAINS[0]


@seen_by("core.view_task")
def queues(request: HttpRequest) -> HttpResponse:
    figures_shown = _figures(request, _domain(request))
    return _page(request, "core/admin/queues.html", title=_("Queues"), **figures_shown)


@seen_by("core.view_task")
def queue_figures(request: HttpRequest) -> HttpResponse:
    """What the page replaces every two seconds."""
    figures_shown = _figures(request, _domain(request))
    return TemplateResponse(request, "core/admin/queue_figures.html", figures_shown)


def _figures(request: HttpRequest, domain: str) -> dict[str, Any]:
    """Of all tenants, or of those that the person belongs to."""
    try:
        if not is_operator(request.user):
            return _figures_of(sorted(roles_of(request.user)), domain)
        domains, dead = figures.totals()
        tenants = figures.tenants(domain, TENANTS)
    except redis.RedisError:
        return {"domain": domain, "away": True}
    return {
        "domain": domain,
        "domains": [
            {
                "name": line.domain,
                "waiting": counted(line.waiting),
                "running": counted(line.running),
                "delayed": counted(line.delayed),
                "tenants": counted(line.tenants),
            }
            for line in domains
        ],
        "dead": counted(dead),
        "any_dead": dead > 0,
        "tenants": [_tenant(line) for line in tenants],
        "shown": TENANTS,
        "waiting_tenants": next(line.tenants for line in domains if line.domain == domain),
    }


def _figures_of(mine: list[str], domain: str) -> dict[str, Any]:
    lines = {name: figures.tenants(name, len(mine), among=mine) for name in DOMAINS}
    return {
        "domain": domain,
        "domains": [
            {
                "name": name,
                "waiting": counted(sum(line.waiting for line in found)),
                "running": counted(sum(line.running for line in found)),
            }
            for name, found in lines.items()
        ],
        "of_person": True,
        "tenants": [_tenant(line) for line in lines[domain] if line.waiting or line.running],
    }


def _tenant(line: figures.TenantFigures) -> dict[str, Any]:
    return {
        "id": line.tenant_id,
        "has_tasks": line.tenant_id != SYSTEM_TENANT,
        "waiting": counted(line.waiting),
        "running": counted(line.running),
        "cap": "–" if line.cap is None else counted(line.cap),
        "full": line.cap is not None and line.waiting > 0 and line.running >= line.cap,
        "weight": f"{line.weight:g}",
        "oldest": duration(line.oldest_wait) if line.waiting else "–",
    }


@seen_by("core.view_task")
def dead_letters(request: HttpRequest) -> HttpResponse:
    """What nobody could read is nobody's: the operators look."""
    if not is_operator(request.user):
        raise PermissionDenied
    context: dict[str, Any]
    try:
        _domains, total = figures.totals()
        letters = figures.dead_letters(DEAD_LETTERS)
    except redis.RedisError:
        context = {"away": True}
    else:
        context = {
            "total": counted(total),
            "letters": [
                {
                    "queue": letter.queue,
                    "reason": REASONS.get(letter.reason, letter.reason),
                    "message": letter.message,
                }
                for letter in letters
            ],
        }
    return _page(request, "core/admin/dead_letters.html", title=_("Dead letters"), **context)


urlpatterns = [
    path("", queues, name="queues"),
    path("figures/", queue_figures, name="figures"),
    path("dead-letters/", dead_letters, name="dead_letters"),
]
