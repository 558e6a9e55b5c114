"""A tenant's management API in this process, with one of its keys."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

from django.db import connection, transaction
from django.test import Client

from core.models import Tenant
from core.models.access import SCOPES
from tests.factories import make_key


class Api:
    """`api(method, path, body)` answers the body, once the status is the expected one."""

    def __init__(self, tenant: Tenant, scopes: tuple[str, ...] = SCOPES) -> None:
        self.tenant = tenant
        self._key = make_key(tenant, scopes)[1]

    def __call__(
        self, method: str, path: str, body: Any = None, *, expect: int = 200, language: str = "en"
    ) -> Any:
        # A refusal ends its transaction; a test's own, if it is in one, goes on.
        with transaction.atomic() if connection.in_atomic_block else nullcontext():
            answer = Client().generic(
                method,
                path,
                json.dumps(body) if body is not None else "",
                content_type="application/json",
                headers={"Authorization": f"Bearer {self._key}", "Accept-Language": language},
            )
        assert answer.status_code == expect, answer.content
        return answer.json() if answer.content else None

    def refused(self, method: str, path: str, body: Any, status: int = 422) -> dict[str, Any]:
        """The details of a refusal."""
        details: dict[str, Any] = self(method, path, body, expect=status)["error"]["details"]
        return details
