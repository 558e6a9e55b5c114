"""What services outside tell: events of tasks go to their sessions, the rest to the tenant's dashboards."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import transaction
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.events import ALIASES
from agents.events import names as management_names
from conversations.selectors import task_seq
from core import aio
from core.actions.bus import execute
from core.actions.registry import handles
from core.errors import TaskNotFound, ValidationFailed
from core.events.base import SERVICES, Event
from core.events.groups import session_name
from core.events.log import Growth, append, running_answer_sync
from core.events.tasks import StatusUpdate
from core.models import Task
from core.models.task import FINAL
from core.outbox import notify
from core.selectors import tenant_limits
from core.tenancy import current_tenant_id
from execution.events import RunFailed, RunProgress, RunStarted
from orchestrator.actions import ServiceTellAction, WebSocketSendAction
from orchestrator.errors import EventRefused, TaskIsOpen


class Token(BaseModel):
    """A piece of the answer. `offset`, where a service counts, is what it believes to come before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str
    offset: int | None = Field(None, ge=0)
    is_final: bool = False


class Anything(BaseModel):
    """Whatever the service has to say."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Progress(RunProgress):
    stage: str = ""


class Failed(RunFailed):
    error_type: str = "Unknown"


class OfAgent(Anything):
    """Services tell less of an agent than the platform does: what there is must fit."""

    agent_id: uuid.UUID
    agent_name: str = ""
    agent_type: str = ""
    version: str = "1.0"
    changes: list[str] = []


class OfTemplate(Anything):
    template_id: str
    template_name: str = ""


PROGRESS: dict[str, type[BaseModel]] = {
    "agent_execution_started": RunStarted,
    "agent_response_token": Token,
    "agent_execution_progress": Progress,
}
ENDS: dict[str, type[BaseModel]] = {
    "agent_execution_completed": Anything,
    "agent_execution_failed": Failed,
    "task_completed": Anything,
    "task_failed": Failed,
}
OF_TASKS: dict[str, type[BaseModel]] = {**PROGRESS, **ENDS, "task_status_update": StatusUpdate}
# Of one fact, the name that is told first.
FIRST_NAMES = {alias: name for name, aliases in ALIASES.items() for alias in aliases}
OF_TENANTS: dict[str, type[BaseModel]] = {
    name: OfTemplate if "template" in name else OfAgent for name in management_names()
}
SHAPES: dict[str, type[BaseModel]] = {**OF_TASKS, **OF_TENANTS}


@handles(ServiceTellAction, atomic=False)
def tell(action: ServiceTellAction) -> None:
    """Raises ValidationFailed for what does not fit its event's shape."""
    shape = SHAPES.get(action.event)
    if shape is None:
        raise ValidationFailed(details={"event": f"one of {', '.join(sorted(SHAPES))}"})
    try:
        data = shape.model_validate(action.data)
    except ValidationError as error:
        raise ValidationFailed.of(error, prefix="data.") from None
    if action.event in OF_TENANTS:
        _tell_tenant(action, FIRST_NAMES.get(action.event, action.event), data)
        return
    task: Task | None = Task.objects.filter(pk=action.task_id).first() if action.task_id else None
    if task is None or action.session_id not in (None, task.session_id):
        raise TaskNotFound()
    if not task.session_id:
        _tell_tenant(action, action.event, data)
    elif action.event in ENDS or (isinstance(data, StatusUpdate) and data.status in FINAL):
        _tell_end(task)
    else:
        _tell_session(action, task, data)


def _tell_tenant(action: ServiceTellAction, name: str, data: BaseModel) -> None:
    """To dashboards and webhooks, by the outbox, as the platform's own notices."""
    tenant_limits(current_tenant_id())  # raises TenantNotFound
    subject = getattr(data, "agent_id", None) or getattr(data, "template_id", None) or action.task_id
    if isinstance(data, OfTemplate):
        subject = f"template:{subject}"[:64]
    event = _event(action, None, name, data.model_dump(mode="json"))
    with transaction.atomic():
        notify(event, str(subject), aliases=ALIASES.get(name, ()))


def _tell_end(task: Task) -> None:
    """The row is the truth: a task that has ended is told as the queue's callback tells it, once."""
    if not task.is_final:
        raise TaskIsOpen(details={"task_id": str(task.pk), "status": task.status})
    execute(WebSocketSendAction(session_id=task.session_id, task_id=task.pk))


def _tell_session(action: ServiceTellAction, task: Task, data: BaseModel) -> None:
    """Into the session's log, as of the attempt that the row is at."""
    attempt = max(1, task.attempt)
    if task.is_final or (isinstance(data, RunStarted) and data.attempt != attempt):
        raise EventRefused(details={"status": task.status, "attempt": attempt})
    said = data.model_dump(mode="json")
    growth = None
    if isinstance(data, Token):
        before = _answer_before(task, attempt, data)
        event = _event(action, task, action.event, said | {"offset": len(before)})
        whole = before + data.token
        again = _event(action, task, action.event, said | {"offset": 0, "token": whole})
        growth = Growth(len(before.encode()), data.token.encode(), lambda: (again, whole.encode()))
    else:
        event = _event(action, task, action.event, said)
    floor = max(1, task_seq(task.pk))
    if aio.run(append(event, attempt, floor=floor, growth=growth)) is None:
        raise EventRefused(details={"status": task.status, "attempt": attempt})


def _answer_before(task: Task, attempt: int, data: Token) -> str:
    """What the session has heard of the answer. Raises EventRefused where the piece does not follow it."""
    running, _ = running_answer_sync(session_name(task.tenant_id, task.session_id))
    ours = running is not None and (running.task_id, running.attempt) == (task.pk, attempt)
    text = running.text if running is not None and ours else ""
    if data.offset not in (None, len(text)):
        raise EventRefused(details={"offset": len(text)})
    return text


def _event(action: ServiceTellAction, task: Task | None, name: str, data: dict[str, Any]) -> Event:
    known = {"event_id": action.event_id} if action.event_id is not None else {}
    return Event(
        event=name,
        service=SERVICES[action.service],
        task_id=action.task_id,
        global_task_id=task.global_task_id if task is not None else action.global_task_id,
        tenant_id=current_tenant_id(),
        session_id=task.session_id if task is not None else None,
        timestamp=action.timestamp.isoformat(),
        data=data,
        **known,
    )
