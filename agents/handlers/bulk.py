"""One change for many agents: lined up with the request, made by a worker, agent by agent."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

from django.db import transaction

from agents.actions import AgentUpdateAction
from agents.bulk_actions import AgentAskBulkUpdateAction, AgentBulkUpdateAction, AskedBulkUpdate
from agents.bulk_selectors import bulk_counts, bulk_items
from agents.errors import AgentNotFound
from agents.models import Agent, AgentBulkItem
from agents.selectors import agent_get, agent_named
from core.actions.base import Settlement
from core.actions.bus import enqueue, execute
from core.actions.registry import handles, works
from core.actions.running import draining
from core.away import DATABASE_AWAY
from core.errors import InternalError, NoobleError
from core.ids import parse_uuid
from core.models import Task
from core.tenancy import current_tenant_id

logger = logging.getLogger(__name__)

# Then another attempt goes on: other tenants' work comes between, and no attempt meets its deadline.
SLICE_SECONDS = 60.0
ROWS = 1_000  # a statement


@handles(AgentAskBulkUpdateAction)
def ask(action: AgentAskBulkUpdateAction) -> AskedBulkUpdate:
    """A tenant's mass updates run one after the other: it holds one worker's slot at most."""
    key = f"agents:{current_tenant_id()}"
    waits = bool(Task.line_up(key))
    work = AgentBulkUpdateAction(changes=action.changes, note=action.note, actor=action.actor)
    task = enqueue(work, serial_key=key, behind=waits)
    items = (
        AgentBulkItem(tenant_id=task.tenant_id, task=task, position=position, agent_id=agent_id, slug=slug)
        for position, (agent_id, slug) in enumerate(_asked(action), start=1)
    )
    total = len(AgentBulkItem.unscoped.bulk_create(items, batch_size=ROWS))
    return AskedBulkUpdate(task_id=task.pk, status=task.status, queue=task.queue, total=total)


def _asked(action: AgentAskBulkUpdateAction) -> Iterator[tuple[uuid.UUID | None, str]]:
    """Ids and slugs of the agents asked for, as far as they are known; each once under the same name."""
    if action.agents is None:
        yield from Agent.objects.filter(deleted_at=None).order_by("pk").values_list("pk", "slug")
        return
    for name in dict.fromkeys(action.agents):
        agent_id = parse_uuid(name)
        yield agent_id, "" if agent_id is not None else name


def _abandoned(action: AgentBulkUpdateAction, task: Task) -> Settlement:
    """What is done is written with each agent."""
    return Settlement(Task.Status.FAILED, result=bulk_counts(task).model_dump())


@works(AgentBulkUpdateAction, abandoned=_abandoned)
def bulk_update(action: AgentBulkUpdateAction, task: Task) -> Settlement:
    """Change what no attempt before has changed. Killed: the next attempt goes on with the next agent."""
    begun = time.monotonic()
    # Of a retry also what failed in another task.
    left = bulk_items(task).exclude(ok=True).exclude(tried_by=task.pk)
    for item_id in list(left.values_list("pk", flat=True)):
        if draining.is_set() or time.monotonic() - begun > SLICE_SECONDS:
            return Settlement(Task.Status.QUEUED)
        if not _is_ours(task):
            break
        _change(item_id, action, task)
    return Settlement(Task.Status.COMPLETED, result=bulk_counts(task).model_dump())


def _is_ours(task: Task) -> bool:
    """Not when somebody has cancelled the task, or it is another worker's by now."""
    rows = Task.objects.filter(pk=task.pk, attempt=task.attempt, status=Task.Status.PROCESSING)
    return bool(rows.exists())


def _change(item_id: int, action: AgentBulkUpdateAction, task: Task) -> None:
    """Change one agent and write down that it is done, in one transaction; or why it was refused."""
    try:
        with transaction.atomic():
            item = _locked(item_id, task)
            if item is not None:
                _identify(item)
                changes = action.changes.model_dump(exclude_unset=True)
                changed = execute(
                    AgentUpdateAction(**changes, agent_id=item.agent_id, actor=action.actor, note=action.note)
                )
                item.ok, item.version, item.error = True, changed.version, None
                item.save()
        return
    except NoobleError as refused:
        error: NoobleError = refused
    except DATABASE_AWAY:
        raise  # nobody's fault: the worker does the rest again
    except Exception:
        # The wall between one agent and the others.
        logger.exception("task %s: an agent cannot be changed", task.pk)
        error = InternalError()
    with transaction.atomic():
        item = _locked(item_id, task)
        if item is not None:
            with suppress(AgentNotFound):
                _identify(item)
            item.ok, item.error = False, error.as_dict()
            item.save()


def _locked(item_id: int, task: Task) -> AgentBulkItem | None:
    """The item, which nobody else has until the end of the transaction; None when it is done by now."""
    rows = AgentBulkItem.objects.select_for_update().exclude(ok=True).exclude(tried_by=task.pk)
    item: AgentBulkItem | None = rows.filter(pk=item_id).first()
    if item is not None:
        item.tried_by = task.pk
    return item


def _identify(item: AgentBulkItem) -> None:
    """Fill in whom the item means. Raises AgentNotFound."""
    agent = agent_get(item.agent_id) if item.agent_id is not None else agent_named(item.slug)
    item.agent_id, item.slug = agent.pk, agent.slug
