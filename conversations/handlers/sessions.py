"""What is done with a session as a whole: begin, change, close, delete."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from typing import Any

import redis
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.db.models.functions import Now

from agents.errors import AgentNotFound
from agents.selectors import agent_live
from conversations.actions import (
    DeletedSessions,
    SessionCloseAction,
    SessionCreateAction,
    SessionDeleteAction,
    SessionDeleteOfUserAction,
    SessionEraseAction,
    SessionResource,
    SessionUpdateAction,
)
from conversations.erasing import erase, erase_content, lone_runs, stop_runs
from conversations.errors import SessionExists, SessionNotFound
from conversations.events import EndedSession, SessionWasClosed
from conversations.fields import check_context
from conversations.models import Session
from conversations.selectors import session_resource, session_seq
from core import aio
from core.actions.bus import enqueue
from core.actions.registry import handles
from core.audit import record
from core.errors import ValidationFailed
from core.events import log
from core.events.groups import session_name
from core.events.publisher import TELLING_SECONDS
from core.ids import new_session_id
from core.models import UsageRecord
from core.tenancy import current_tenant_id

logger = logging.getLogger(__name__)


def locked(key: str) -> Session:
    """The session, until the transaction ends nobody else's; not against the insert of a message.

    A POST takes the same lock first, then the line of the session's runs, then their rows. Raises
    SessionNotFound.
    """
    rows = Session.objects.filter(key=key, deleted_at=None)
    session: Session | None = rows.select_for_update(no_key=True).first()
    if session is None:
        raise SessionNotFound()
    return session


@handles(SessionCreateAction)
def create(action: SessionCreateAction) -> SessionResource:
    agent = agent_live(action.agent_id)
    tenant_id = current_tenant_id()
    if agent.tenant_id != tenant_id:
        raise AgentNotFound()
    key = action.session_id or new_session_id()
    session = Session(
        tenant_id=tenant_id,
        key=key,
        agent_id=agent.agent_id,
        title=action.title,
        user_id=action.user_info.user_id,
        user_info=action.user_info.about,
        context=action.context,
    )
    try:
        with transaction.atomic():
            session.save(force_insert=True)
    except IntegrityError:
        raise SessionExists(details={"session_id": key}) from None
    try:
        log.begin(session_name(tenant_id, key))
    except redis.RedisError:
        logger.warning("the session log is away")
    return session_resource(session)


@handles(SessionUpdateAction)
def update(action: SessionUpdateAction) -> SessionResource:
    """The record says which fields have changed, and nothing of what stands in them: it outlives them."""
    session = locked(action.session_id)
    changed = []
    if action.title is not None and action.title != session.title:
        session.title = action.title
        changed.append("title")
    if action.context:
        context = {**session.context, **action.context}
        context = {name: value for name, value in context.items() if value is not None}
        try:
            check_context(context)
        except ValueError as error:
            raise ValidationFailed(details={"context": str(error)}) from None
        if context != session.context:
            session.context = context
            changed += sorted(f"context.{name}" for name in action.context)
    if changed:
        session.save(update_fields=["title", "context"])
        _record(action.verb, session, before={}, after={"changed": changed})
    return session_resource(session)


@handles(SessionCloseAction)
def close(action: SessionCloseAction) -> SessionResource:
    """What is over already stays as it is."""
    session = locked(action.session_id)
    before = session.state
    if Session.close(session.pk):
        stop_runs(session, action.by)
        session.refresh_from_db(fields=["state", "ended_at"])
        _record(action.verb, session, before={"state": before}, after={"state": session.state})
        transaction.on_commit(functools.partial(_tell_closed, session), robust=True)
    return session_resource(session)


def _tell_closed(session: Session) -> None:
    """Tried once: who has not heard it learns it from the refusal of the next message."""
    assert session.ended_at is not None
    event = SessionWasClosed(
        task_id=None,
        global_task_id=None,
        tenant_id=session.tenant_id,
        session_id=session.key,
        data=EndedSession(ended_at=session.ended_at),
    )
    floor = max(1, session_seq(session.key) or 0)
    try:
        aio.run(asyncio.wait_for(log.append(event, floor=floor), TELLING_SECONDS))
    except (redis.RedisError, OSError, TimeoutError):
        logger.warning("session %s does not hear that it is closed: Valkey is away", session.key)


@handles(SessionDeleteAction)
def delete(action: SessionDeleteAction) -> None:
    session = locked(action.session_id)
    _delete(session, action.verb, action.by)


def _delete(session: Session, verb: str, by: str) -> None:
    """All at once, when nothing runs in it. Else all that is there now, and the rest behind its last run."""
    gone = {"agent_id": session.agent_id, "created_at": session.created_at}
    running = stop_runs(session, by)
    if running:
        _leave_husk(session)
        erase_content([session], spare=running)
        # Behind the runs: by then no worker writes for them any more.
        enqueue(SessionEraseAction(session_row_id=session.pk), serial_key=session.serial_key, behind=True)
    else:
        erase([session])
    _record(verb, session, before=gone, after={})


def _leave_husk(session: Session) -> None:
    """Nobody sees it any more, and its id is taken until the runs have ended."""
    empty: dict[str, Any] = {"title": "", "user_id": "", "user_info": {}, "context": {}}
    if not Session.close(session.pk, deleted_at=Now(), **empty):
        Session.objects.filter(pk=session.pk).update(deleted_at=Now(), **empty)


@handles(SessionEraseAction)
def erase_rest(action: SessionEraseAction) -> None:
    rows = Session.objects.filter(pk=action.session_row_id).exclude(deleted_at=None)
    session = rows.select_for_update(no_key=True).first()
    if session is not None:
        erase([session])


@handles(SessionDeleteOfUserAction, atomic=False)
def delete_of_user(action: SessionDeleteOfUserAction) -> DeletedSessions:
    """Session by session, each in a transaction of its own: done again, it goes on where it stopped.

    Sessions that begin meanwhile are new ones, and stay.
    """
    rows = Session.objects.filter(user_id=action.user_id, deleted_at=None)
    newest = rows.aggregate(newest=Max("pk"))["newest"] or 0
    deleted = 0
    for key in list(rows.filter(pk__lte=newest).order_by("pk").values_list("key", flat=True)):
        with transaction.atomic():
            try:
                session = locked(key)
            except SessionNotFound:
                continue  # somebody else was faster
            if session.user_id == action.user_id:
                _delete(session, action.verb, action.by)
                deleted += 1
    with transaction.atomic():
        # What this person's questions in sessions of others have cost.
        UsageRecord.objects.filter(end_user=action.user_id).update(end_user="")
        lone_runs().filter(payload__end_user=action.user_id).delete()
        proof = hashlib.blake2b(action.user_id.encode(), digest_size=16).hexdigest()
        tenant_id = current_tenant_id()
        record(action.verb, "end_user", proof, tenant_id=tenant_id, before={"sessions": deleted}, after={})
    return DeletedSessions(deleted=deleted)


def _record(verb: str, session: Session, *, before: dict[str, Any], after: dict[str, Any]) -> None:
    record(verb, "session", session.key, tenant_id=session.tenant_id, before=before, after=after)
