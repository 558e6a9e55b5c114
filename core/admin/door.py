"""The console's door, when somebody has tried too many passwords (django-axes counts them)."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from core.addresses import address_of
from core.ratelimits import network_of


def visitor_of(request: HttpRequest) -> str | None:
    """For whom tries are counted: somebody with IPv6 has a new address for each of them."""
    return network_of(address_of(request))


def shut(request: HttpRequest, response: HttpResponse, credentials: dict[str, Any] | None) -> HttpResponse:
    """The answer to a name that is locked for an address: 429, whether or not the password is right."""
    wait = settings.AXES_COOLOFF_TIME
    context = {**admin.site.each_context(request), "minutes": int(wait.total_seconds() // 60)}
    locked = render(request, "core/admin/door_shut.html", context, status=429)
    locked["Retry-After"] = str(int(wait.total_seconds()))
    return locked
