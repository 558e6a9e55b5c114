"""Batches: take them, feed them to the workers, stop them.

Only a few items of a tenant have a task at a time; the others wait in their rows. Every run's callback
feeds its tenant's batches: it writes down what has ended and begins what is next, in one transaction. The
callback is a task of the transaction that settles the run, so whoever is killed leaves either both or
none; and a round (`orchestrator.batches.rounds`) asks for what nobody has done.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from agents.config import AgentConfig
from agents.published_selectors import agent_id_named
from agents.selectors import agent_live, agent_version
from core import tracing
from core.actions.bus import enqueue, execute
from core.actions.registry import handles
from core.actions.tasks import TaskCancelAction
from core.audit import record
from core.away import DATABASE_AWAY
from core.errors import CannotCancel, InternalError, NoobleError, TaskNotFound
from core.models import Task, Tenant
from core.outbox import notify
from core.queues.names import LOW
from core.selectors import tenant_limits
from core.tenancy import current_tenant_id
from execution.accounting import check_budgets
from execution.actions import ExecuteAgentAction
from orchestrator.batches.actions import (
    AcceptedBatch,
    BatchCancelAction,
    BatchCreateAction,
    BatchFeedAction,
    BatchItemInput,
)
from orchestrator.batches.lines import Problems
from orchestrator.batches.selectors import batch_get
from orchestrator.errors import TooManyBatches
from orchestrator.events import BatchCompleted, EndedBatch
from orchestrator.handlers.executions import check_fits
from orchestrator.models import OPEN_BATCHES, Batch, BatchItem, BatchStatus, ItemStatus

logger = logging.getLogger(__name__)

MOST_OPEN = 100  # batches of a tenant
# Items of a tenant that have a task at a time, at most; and never more than half of what it may run at
# once: the other half is there for those who wait for an answer.
MOST_AT_ONCE = 16
ROWS = 1_000  # of one statement


# --- Taking one ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Agent:
    """An agent that answers, as a batch's items need it."""

    agent_id: uuid.UUID
    version_id: int
    config: AgentConfig


@handles(BatchCreateAction, atomic=False)
def create(action: BatchCreateAction) -> AcceptedBatch:
    """All of it or nothing. The tenant's batches are worked through in the order in which they came.

    Raises AgentNotFound, TooManyBatches, BudgetExhausted when not even the first item has room, and
    ValidationFailed with what is wrong with each item.
    """
    if Batch.objects.filter(status__in=OPEN_BATCHES).count() >= MOST_OPEN:
        raise TooManyBatches(details={"limit": MOST_OPEN})
    agents: dict[str, _Agent | NoobleError] = {}
    if action.agent_id is not None:
        agents[str(action.agent_id)] = _agent(str(action.agent_id))
    problems = Problems()
    for item in action.items:
        try:
            check_fits(_agent_of(item, action.agent_id, agents).config, item.messages)
        except NoobleError as error:
            problems.add(item.place, error)
    problems.refuse()
    rows = [(item, _agent_of(item, action.agent_id, agents)) for item in action.items]
    item, agent = rows[0]
    said = (message.content for message in item.messages)
    check_budgets(agent.agent_id, agent.version_id, item.user_id, said)
    asked = tracing.current()
    with transaction.atomic():
        batch = Batch.unscoped.create(
            tenant_id=current_tenant_id(),
            agent_id=action.agent_id,
            total=len(rows),
            traceparent=asked.trace.header if asked else "",
            request_id=asked.request_id if asked else "",
        )
        for begin in range(0, len(rows), ROWS):
            _write(batch, rows[begin : begin + ROWS], begin + 1)
        after = {"items": batch.total, "agent_id": str(batch.agent_id) if batch.agent_id else None}
        record(action.verb, "batch", batch.pk, tenant_id=batch.tenant_id, before={}, after=after)
        enqueue(BatchFeedAction())
    return AcceptedBatch(batch_id=batch.pk)


def _agent(name: str) -> _Agent:
    """The current tenant's agent of that id or slug. Raises AgentNotFound, and Suspended."""
    live = agent_live(agent_id_named(name), current_tenant_id())
    return _Agent(live.agent_id, live.version_id, agent_version(live.version_id).config)


def _agent_of(
    item: BatchItemInput, default: uuid.UUID | None, agents: dict[str, _Agent | NoobleError]
) -> _Agent:
    """Whom the item asks; `agents` are those that are known by now. Raises AgentNotFound, and Suspended."""
    name = item.agent or str(default)
    found = agents.get(name)
    if found is None:
        try:
            found = _agent(name)
        except NoobleError as error:
            found = error
        agents[name] = found
    if isinstance(found, NoobleError):
        raise found
    return found


def _write(batch: Batch, rows: Sequence[tuple[BatchItemInput, _Agent]], begin: int) -> None:
    """Items that wait, from that position on. Spelled out: by the ORM it takes five times the CPU."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {BatchItem._meta.db_table}"
            " (tenant_id, batch_id, position, custom_id, agent_id, version_id, request, status)"
            " SELECT %s, %s, position, custom_id, agent_id, version_id, request::jsonb, %s"
            " FROM unnest(%s::int[], %s::text[], %s::uuid[], %s::bigint[], %s::text[])"
            " AS item (position, custom_id, agent_id, version_id, request)",
            [
                batch.tenant_id,
                batch.pk,
                ItemStatus.PENDING,
                list(range(begin, begin + len(rows))),
                [item.custom_id for item, _ in rows],
                [agent.agent_id for _, agent in rows],
                [agent.version_id for _, agent in rows],
                [_request(item) for item, _ in rows],
            ],
        )


def _request(item: BatchItemInput) -> str:
    """What of the item its run gets, in the words of ExecuteAgentAction."""
    request = {
        "messages": [message.model_dump() for message in item.messages],
        "options": item.options.model_dump(mode="json") if item.options is not None else None,
        "end_user": item.user_id,
        "metadata": item.metadata,
    }
    return orjson.dumps(request).decode()


# --- Feeding ---------------------------------------------------------------------------------------


def alone() -> None:
    """Until the transaction ends nobody else changes the current tenant's batches."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"batches {current_tenant_id()}"]
        )


@handles(BatchFeedAction)
def feed(action: BatchFeedAction) -> None:
    alone()
    _advance()


def _advance() -> None:
    """Write down what has ended, and fill the places that are free."""
    touched: set[uuid.UUID] = set()
    running = 0
    items = BatchItem.objects.filter(status=ItemStatus.PROCESSING).select_related("task")
    for item in items.defer("request", "task__payload", "task__callback"):
        task: Task | None = item.task
        if task is not None and not task.is_final:
            running += 1
        elif task is not None:
            _end(item, task.status, task.result, task.error)
            touched.add(item.batch_id)
        else:
            _end(item, ItemStatus.FAILED, None, TaskNotFound().as_dict())
            touched.add(item.batch_id)
    touched |= _begin_next(_places() - running)
    _close(touched)


def _places() -> int:
    """How many items of the current tenant may have a task at once."""
    cap: int = Tenant.objects.values_list("tier__max_running", flat=True).get(pk=current_tenant_id())
    return min(MOST_AT_ONCE, max(1, cap // 2))


def _begin_next(free: int) -> set[uuid.UUID]:
    """The batches in which items have failed before they began."""
    if free <= 0:
        return set()
    waiting = BatchItem.objects.filter(status=ItemStatus.PENDING).select_related("batch")
    failed = set()
    for item in waiting.order_by("batch_id", "position")[:free]:
        error = _begin(item)
        if error is not None:
            _end(item, ItemStatus.FAILED, None, error.as_dict())
            failed.add(item.batch_id)
    if failed:
        # Their places are for others; in another transaction, since these may be thousands.
        enqueue(BatchFeedAction())
    return failed


def _begin(item: BatchItem) -> NoobleError | None:
    """Give the item its task; the error for which it gets none."""
    batch = item.batch
    try:
        with transaction.atomic(), tracing.context(batch.traceparent, request_id=batch.request_id):
            task = _enqueue(item)
            BatchItem.objects.filter(pk=item.pk).update(status=ItemStatus.PROCESSING, task=task)
    except NoobleError as refused:
        return refused
    except DATABASE_AWAY:
        raise
    except Exception:
        # The wall between one item and the others.
        logger.exception("item %s of batch %s cannot begin", item.position, batch.pk)
        return InternalError()
    return None


def _enqueue(item: BatchItem) -> Task:
    """Raises AgentNotFound and Suspended when the agent answers nobody any more, and BudgetExhausted."""
    tenant_id = current_tenant_id()
    agent_live(item.agent_id, tenant_id)
    run = ExecuteAgentAction(
        agent_id=item.agent_id, version_id=item.version_id, session_id="", **item.request
    )
    assert run.messages is not None
    texts = (message.content for message in run.messages)
    check_budgets(item.agent_id, item.version_id, run.end_user, texts)
    return enqueue(
        run,
        priority=tenant_limits(tenant_id).cap_priority(LOW),
        callback=lambda task_id: BatchFeedAction(),
        agent_id=item.agent_id,
    )


def _end(item: BatchItem, status: str, result: Any, error: Any) -> None:
    """Once, and counted; nobody else has the item meanwhile."""
    BatchItem.objects.filter(pk=item.pk).update(status=status, result=result, error=error, finished_at=Now())
    count = _COUNTS[ItemStatus(status)]
    Batch.objects.filter(pk=item.batch_id).update(**{count: F(count) + 1})


_COUNTS = {
    ItemStatus.COMPLETED: "succeeded",
    ItemStatus.FAILED: "failed",
    ItemStatus.CANCELLED: "cancelled",
}
_ENDS = {
    BatchStatus.PROCESSING: BatchStatus.COMPLETED,
    BatchStatus.CANCELLING: BatchStatus.CANCELLED,
}


def _close(batch_ids: Iterable[uuid.UUID]) -> None:
    """End those whose last item has ended, and tell it."""
    for batch in Batch.objects.filter(pk__in=batch_ids, status__in=OPEN_BATCHES).order_by("pk"):
        if batch.done < batch.total:
            continue
        batch.status = _ENDS[BatchStatus(batch.status)]
        Batch.objects.filter(pk=batch.pk).update(status=batch.status, finished_at=Now())
        data = EndedBatch(
            batch_id=batch.pk,
            status=batch.status,
            total=batch.total,
            succeeded=batch.succeeded,
            failed=batch.failed,
            cancelled=batch.cancelled,
        )
        about = {"task_id": None, "global_task_id": None, "session_id": None}
        notify(BatchCompleted(tenant_id=batch.tenant_id, data=data, **about), batch.pk)


# --- Stopping --------------------------------------------------------------------------------------


@handles(BatchCancelAction)
def cancel(action: BatchCancelAction) -> None:
    """Cancelling twice is once. Raises BatchNotFound, and CannotCancel for what has ended."""
    alone()
    batch = batch_get(str(action.batch_id))
    if not batch.is_open:
        raise CannotCancel(batch.status)
    if batch.status == BatchStatus.CANCELLING:
        return
    waiting = BatchItem.objects.filter(batch=batch, status=ItemStatus.PENDING)
    count = waiting.update(status=ItemStatus.CANCELLED, finished_at=Now())
    Batch.objects.filter(pk=batch.pk).update(
        status=BatchStatus.CANCELLING,
        cancelled=F("cancelled") + count,
        cancelled_at=Now(),
        cancelled_by=action.by,
    )
    running = BatchItem.objects.filter(batch=batch, status=ItemStatus.PROCESSING)
    for task_id in list(running.exclude(task=None).values_list("task_id", flat=True)):
        # One that has just ended is as it should be.
        with suppress(CannotCancel):
            execute(TaskCancelAction(task_id=task_id, by=action.by))
    record(
        action.verb,
        "batch",
        batch.pk,
        tenant_id=batch.tenant_id,
        before={"status": batch.status},
        after={"status": BatchStatus.CANCELLING},
    )
    _advance()
    _close([batch.pk])
