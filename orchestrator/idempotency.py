"""One answer per `Idempotency-Key`: a request that is sent again has no second effect."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from django.db import connection, transaction
from rest_framework.response import Response

from core.errors import ValidationFailed
from core.models import ApiKey
from core.tenancy import across_tenants, current_tenant_id
from orchestrator.end_users import EndUser
from orchestrator.errors import IdempotencyKeyReused
from orchestrator.models import IdempotencyKey

HEADER = "Idempotency-Key"
LIFE = "24 hours"
LONGEST_WAIT = "4s"  # for a first request that is still at work
UNGUESSABLE = 22  # characters: 128 random bits in base64

_form = re.compile(r"[ -~]{16,255}")
# For the schema. Blanks at the ends of a header are not its own.
KEY = {"type": "string", "pattern": r"^[!-~][ -~]{14,253}[!-~]$"}
_TABLE = IdempotencyKey._meta.db_table


@dataclass(frozen=True, slots=True)
class Once:
    """A request that bears a key. `scope` and `body` are digests."""

    scope: str
    key: str
    body: str

    @classmethod
    def of(
        cls,
        key: str,
        body: dict[str, Any],
        agent_id: uuid.UUID | None,
        session_id: str | None,
        owner: ApiKey | EndUser | None,
    ) -> Once:
        """A key is unique for its `owner`; without one for the agent and the body's session.

        Where both are missing, the key alone opens an answer that holds capabilities: it must be hard
        to guess. Raises ValidationFailed.
        """
        shortest = 16 if owner or session_id else UNGUESSABLE
        if not _form.fullmatch(key) or len(key) < shortest:
            raise ValidationFailed(details={HEADER: f"{shortest} to 255 printable ASCII characters"})
        if isinstance(owner, EndUser):
            scope = f"user\0{owner.tenant_id}\0{owner.user_id}"
        elif owner is not None:
            scope = f"key\0{owner.pk}"
        else:
            scope = f"agent\0{agent_id}\0{session_id or ''}"
        return cls(_digest(scope.encode()), key, _digest(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)))

    def answer(self, work: Callable[[], Response]) -> Response:
        """What `work` answers, or what it answered to the first request with this key.

        The key, all that `work` writes and its answer are one transaction: whoever is killed leaves all
        or nothing. What is not accepted is not kept: it may be tried again. While the first request is
        at work, others with its key wait for it.

        Raises IdempotencyKeyReused, and OperationalError when the wait takes too long.
        """
        with transaction.atomic():
            answer = self._find()
            if answer is None:
                response = work()
                if response.status_code != HTTPStatus.ACCEPTED:
                    transaction.set_rollback(True)
                    return response
                answer = orjson.dumps(response.data).decode()
                self._keep(answer, (response.data.get("result") or {}).get("session_id") or "")
        return Response(orjson.loads(answer), status=HTTPStatus.ACCEPTED)

    def _find(self) -> str | None:
        """The answer that is kept; None when the key is free, and now ours until the transaction ends.

        The insert waits for whoever has just inserted the same, and takes over what is too old. An API key
        may ask agents of other tenants, too: its keys are its own whoever pays.
        """
        tenant_id = current_tenant_id()
        with across_tenants(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = '{LONGEST_WAIT}'")
            cursor.execute(
                f"INSERT INTO {_TABLE} AS kept (tenant_id, scope, key, body, answer)"
                " VALUES (%s, %s, %s, %s, '') ON CONFLICT (scope, key) DO UPDATE SET"
                " tenant_id = EXCLUDED.tenant_id, body = EXCLUDED.body, answer = '',"
                f" created_at = now() WHERE kept.created_at <= now() - INTERVAL '{LIFE}' RETURNING 1",
                [tenant_id, self.scope, self.key, self.body],
            )
            if cursor.fetchone():
                return None
            cursor.execute(
                f"SELECT body, answer FROM {_TABLE} WHERE scope = %s AND key = %s", [self.scope, self.key]
            )
            body, answer = cursor.fetchone()
        if body != self.body:
            raise IdempotencyKeyReused(details={"header": HEADER})
        return str(answer)

    def _keep(self, answer: str, session_id: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {_TABLE} SET answer = %s, session_id = %s WHERE scope = %s AND key = %s",
                [answer, session_id, self.scope, self.key],
            )


@across_tenants()
def forget_expired(limit: int = 1_000) -> int:
    """Delete up to `limit` keys of all tenants that are too old to count. Returns how many.

    Those that a request holds just now are left for the next time.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM {_TABLE} WHERE id IN (SELECT id FROM {_TABLE}"
            f" WHERE created_at <= now() - INTERVAL '{LIFE}'"
            " ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED)",
            [limit],
        )
        return int(cursor.rowcount)


def forget_sessions(session_ids: Sequence[str]) -> None:
    """Delete the keys of requests that began or spoke in these sessions of the current tenant."""
    IdempotencyKey.objects.filter(session_id__in=session_ids).delete()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
