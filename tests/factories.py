"""Rows for tests. Plain functions; names are random, so that nothing of one test is found by another."""

from __future__ import annotations

import datetime
import secrets
import time
import uuid
from typing import Any

import jwt
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.functions import Now

from agents.actions import AgentCreateAction
from agents.models import Agent
from conversations.actions import ConversationAppendAction
from conversations.models import Message, Session
from core.actions.bus import enqueue, execute
from core.actions.notices import NoticeRelayAction
from core.events import log
from core.events.groups import session_name
from core.ids import new_session_id
from core.models import ApiKey, EndUserSecret, Notice, Task, Tenant, Tier
from core.models.access import SCOPES
from core.models.membership import Membership, Role
from core.queues.names import Priority
from core.tenancy import tenant_scope
from execution.actions import ExecuteAgentAction, RunMessage, RunOptions
from orchestrator.actions import WebSocketSendAction


def random_slug(stem: str = "t") -> str:
    return f"{stem}-{secrets.token_hex(8)}"


def make_tenant(slug: str | None = None, **tier_fields: Any) -> Tenant:
    """A tenant with a tier of its own, which limits nothing but what `tier_fields` say."""
    tier = Tier.objects.create(slug=random_slug("tier"), name="Tier", **Tier.UNLIMITED | tier_fields)
    slug = slug or random_slug()
    return Tenant.objects.create(id=slug, name=slug, tier=tier)


def make_key(tenant: Tenant, scopes: tuple[str, ...] = SCOPES) -> tuple[ApiKey, str]:
    """A saved API key and its text."""
    key = ApiKey(tenant=tenant, name="test", scopes=list(scopes))
    text = key.mint()
    key.save()
    return key, text


def make_secret(tenant: Tenant) -> str:
    """The text of a saved end-user secret."""
    secret = EndUserSecret(tenant=tenant, name="test")
    text = secret.mint()
    secret.save()
    return text


def sign(secret: str, user_id: str, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """An end user's token as a tenant's back end makes it, for a minute unless `exp` says otherwise."""
    spelled = {"sub": user_id, "exp": int(time.time()) + 60, **claims}
    return jwt.encode(spelled, secret, algorithm="HS256", headers=headers)


def make_person(*memberships: tuple[Tenant, Role], name: str | None = None) -> User:
    """Somebody whom the operator let into the console, and who belongs to these tenants."""
    person: User = User.objects.create_user(name or random_slug("p"), is_staff=True)
    for tenant, role in memberships:
        Membership.unscoped.create(tenant=tenant, user=person, role=role)
    return person


def make_task(tenant: Tenant, **fields: Any) -> Task:
    """A task's row and nothing else: nothing is published."""
    defaults: dict[str, Any] = {
        "global_task_id": uuid.uuid4(),
        "action": "test.nothing",
        "payload": {},
        "queue": f"agent:{tenant.pk}:execute:normal",
        "priority": 5,
    }
    task: Task = Task.unscoped.create(tenant=tenant, **{**defaults, **fields})
    return task


def claim(task: Task) -> Task:
    """The task as a worker has it now, for a minute."""
    claimed = Task.claim(task.pk, task.tenant_id, 60)
    assert claimed is not None
    return claimed


def lose_worker(task: Task) -> None:
    """The task's worker has not renewed its lease for too long."""
    Task.unscoped.filter(pk=task.pk).update(lease_until=Now() - datetime.timedelta(seconds=0.001))


def make_agent(tenant: Tenant, *, slug: str | None = None, draft: bool = False, **config: Any) -> Agent:
    """An agent with its version 1, untold; the scripted echo unless `config` says otherwise."""
    action = AgentCreateAction(
        name="Test agent",
        type="assistant",
        slug=slug,
        draft=draft,
        config={"provider": "scripted", "model": "echo", **config},
        actor="test",
    )
    with tenant_scope(tenant.pk):
        created = execute(action)
    subject = str(created.agent_id)
    Notice.unscoped.filter(subject=subject).delete()
    Task.unscoped.filter(action=NoticeRelayAction.verb, payload={"subject": subject}).delete()
    agent: Agent = Agent.unscoped.select_related("version").get(pk=created.agent_id)
    return agent


def make_session(agent: Agent, key: str | None = None) -> Session:
    """A session and its empty log, as the front door begins them."""
    session: Session = Session.unscoped.create(
        tenant_id=agent.tenant_id, key=key or new_session_id(), agent=agent
    )
    log.begin(session_name(agent.tenant_id, session.key))
    return session


def make_message(session: Session, role: str, text: str, task: Task | None = None, seq: int = 0) -> Message:
    message: Message = Message.unscoped.create(
        tenant_id=session.tenant_id, session=session, task=task, role=role, text=text, seq=seq
    )
    return message


def make_run(session: Session, text: str, *, callback: bool = True) -> Task:
    """A question and its task, as the front door leaves them for the worker."""
    agent = session.agent
    with tenant_scope(session.tenant_id), transaction.atomic():
        task = enqueue(
            ExecuteAgentAction(
                agent_id=agent.pk,
                version_id=agent.version_id,
                session_id=session.key,
                session_row_id=session.pk,
                end_user="ada",
            ),
            priority=Priority.P5,
            callback=(lambda task_id: WebSocketSendAction(session_id=session.key, task_id=task_id))
            if callback
            else None,
            agent_id=agent.pk,
            session_id=session.key,
        )
        execute(
            ConversationAppendAction(
                session_row_id=session.pk, task_id=task.pk, role="user", text=text, seq=0
            )
        )
    return task


def make_execution(
    agent: Agent, *messages: tuple[str, str], options: RunOptions | None = None, callback: bool = True
) -> Task:
    """The task of a run without a session, on `(role, content)` messages."""
    with tenant_scope(agent.tenant_id), transaction.atomic():
        return enqueue(
            ExecuteAgentAction(
                agent_id=agent.pk,
                version_id=agent.version_id,
                session_id="",
                messages=tuple(RunMessage(role=role, content=content) for role, content in messages),
                options=options,
                end_user="ada",
            ),
            callback=(lambda task_id: WebSocketSendAction(session_id="", task_id=task_id))
            if callback
            else None,
            agent_id=agent.pk,
        )
