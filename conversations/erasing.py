"""What belongs to a session, and goes with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress

from django.db import transaction
from django.db.models import QuerySet

from conversations.models import Message, Session
from core.actions.bus import execute
from core.actions.tasks import TaskCancelAction
from core.errors import CannotCancel
from core.events import log
from core.events.groups import session_name
from core.events.publisher import tell_deleted
from core.models import Task, UsageRecord
from core.models.task import FINAL
from core.tenancy import current_tenant_id

# What higher floors keep of sessions of the current tenant, by the sessions' ids: deletes it. Set by the
# roof.
belongings: list[Callable[[Sequence[str]], None]] = []


def stop_runs(session: Session, by: str) -> list[Task]:
    """Cancel what runs in the session and what waits to; gives the runs that a worker has still to stop.

    In a transaction that has locked the session: nobody adds a run to it until that ends.
    """
    for task in Task.line_up(session.serial_key):
        # One that is being cancelled, or has just ended, is out of the way already.
        with suppress(CannotCancel):
            execute(TaskCancelAction(task_id=task.pk, by=by))
    return list(Task.open_of(session.serial_key))


def lone_runs() -> QuerySet[Task]:
    """The current tenant's runs without a session that have ended: what was said stands in their rows."""
    rows: QuerySet[Task] = Task.objects.filter(agent_id__isnull=False, session_id="", status__in=FINAL)
    return rows


def erase(sessions: Sequence[Session]) -> None:
    """Delete sessions of the current tenant in which nothing runs; in a transaction that has locked them.

    All or nothing: raises redis.RedisError where their logs cannot be deleted.
    """
    erase_content(sessions)
    Session.objects.filter(pk__in=[session.pk for session in sessions]).delete()


def erase_content(sessions: Sequence[Session], spare: Sequence[Task] = ()) -> None:
    """Delete what was said in the sessions and all that is known of it, but `spare` what is under way.

    What calls have cost stays, and says no more for whom.
    """
    keys = [session.key for session in sessions]
    for delete in belongings:
        delete(keys)
    Message.objects.filter(session__in=sessions).delete()
    ended = Task.objects.filter(session_id__in=keys).exclude(pk__in=[task.pk for task in spare])
    tasks = list(ended.values_list("pk", flat=True))
    UsageRecord.objects.filter(task__in=tasks).update(session_id="", end_user="")
    Task.objects.filter(pk__in=tasks).only("pk").delete()
    tenant_id = current_tenant_id()
    log.forget([session_name(tenant_id, key) for key in keys])
    transaction.on_commit(functools.partial(tell_deleted, tenant_id, keys), robust=True)
