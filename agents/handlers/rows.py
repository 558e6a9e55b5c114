"""How agents are written: every handler begins and ends here.

One writer at a time holds the agent's row, so version numbers have no holes and no twins, and what
is compared with `if_match` is what is changed. A change, its version and its audit entry are one
transaction.
"""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.text import slugify
from pydantic import ValidationError

from agents.config import AgentConfig
from agents.errors import AgentNotFound, SlugTaken, StaleVersion
from agents.events import notify_agent
from agents.models import Agent, AgentVersion
from agents.selectors import access_of, agent_changed, agent_changes, agent_state
from agents.validation import check_config, check_room
from core.audit import record
from core.changes import changes_between
from core.errors import ValidationFailed
from core.events.publisher import tell_access
from core.models import Tenant
from core.selectors import tenant_changed

# They follow from what else has changed; a notice tells the version anyway.
COUNTERS = ("version", "etag")


def locked(
    agent_id: uuid.UUID, if_match: tuple[str, ...] | None = None, *, also_deleted: bool = False
) -> Agent:
    """The agent, which nobody else can change until the end of the transaction.

    Raises AgentNotFound, and StaleVersion when `if_match` does not name its state.
    """
    # The lock lets sessions begin meanwhile. It comes first: what the next line reads with the row
    # is then as the last writer left it.
    Agent.objects.select_for_update(no_key=True).filter(pk=agent_id).first()
    agent: Agent | None = Agent.objects.filter(pk=agent_id).select_related("version", "published").first()
    if agent is None or (agent.deleted_at is not None and not also_deleted):
        raise AgentNotFound()
    assert agent.version is not None
    if if_match is not None and agent.tag not in if_match and "*" not in if_match:
        details = {"etag": agent.tag, "version": agent.version.number}
        changes = agent_changes(agent, if_match[0]) if if_match else None
        if changes is not None:
            details["diff"] = [change.as_dict() for change in changes]
        raise StaleVersion(details=details)
    return agent


def begin(
    agent: Agent, config: AgentConfig, *, verb: str, actor: str, note: str = "", slug_may_change: bool
) -> None:
    """Write a new agent with its version 1; its `status` says whether it answers."""
    check_room()
    check_config(config)
    live = agent.status == Agent.Status.PUBLISHED
    agent.status = Agent.Status.DRAFT  # until there is a version that can answer
    save_with_free_slug(agent, slug_may_change=slug_may_change)
    add_version(agent, config, actor, note)
    if live:
        agent.published = agent.version
    keep(agent, {}, verb=verb, actor=actor)


def add_version(agent: Agent, config: AgentConfig, author: str, note: str) -> None:
    """Give the agent its next version; `keep` writes the agent."""
    agent.version = AgentVersion.unscoped.create(
        tenant_id=agent.tenant_id,
        agent=agent,
        number=agent.version.number + 1 if agent.version is not None else 1,
        config=config.model_dump(mode="json", exclude_none=True),
        author=author,
        note=note,
    )
    agent.edits = 0


def keep(agent: Agent, before: dict[str, Any], *, verb: str, actor: str) -> None:
    """Write the agent, put on record and tell what differs from the state `before`; if nothing, nothing.

    Raises SlugTaken.
    """
    agent.status = Agent.Status.PUBLISHED if agent.published is not None else Agent.Status.DRAFT
    after = agent_state(agent)
    if after == before:
        return
    if after.get("version") == before.get("version"):
        agent.edits += 1
        after["etag"] = agent.tag
    save(agent)
    transaction.on_commit(partial(agent_changed, agent.pk))
    _guard(agent, before, after)
    record(verb, "agent", agent.pk, tenant_id=agent.tenant_id, before=before, after=after, actor=actor)
    changes = [change.field for change in changes_between(before, after) if change.field not in COUNTERS]
    if not before:
        notify_agent("agent_created", agent)
    elif after["deleted"] and not before["deleted"]:
        notify_agent("agent_deleted", agent)
    else:
        notify_agent("agent_updated", agent, changes)


def _guard(agent: Agent, before: dict[str, Any], after: dict[str, Any]) -> None:
    """From the first agent on that is not open to all, its tenant's sockets ask whose they are."""
    said = (agent.published or agent.version).config  # type: ignore[union-attr]
    if agent.suspended_at is None and access_of(said).is_open:
        return
    if all(before.get(name) == after[name] for name in ("published_version", "suspended")):
        return
    # Never taken back: of two agents that change at once, neither sees what the other becomes.
    Tenant.objects.filter(pk=agent.tenant_id, guarded=False).update(guarded=True)
    transaction.on_commit(partial(tenant_changed, agent.tenant_id))
    transaction.on_commit(partial(tell_access, agent.tenant_id))


def save(agent: Agent) -> None:
    """Raises SlugTaken; the transaction goes on."""
    try:
        with transaction.atomic():
            agent.save()
    except IntegrityError as error:
        raise SlugTaken(details={"slug": agent.slug}) from error


def save_with_free_slug(agent: Agent, *, slug_may_change: bool) -> None:
    """Save; a slug that is taken gets a suffix if it may. Raises SlugTaken."""
    if slug_may_change and _is_taken(agent.slug):
        agent.slug = _with_suffix(agent.slug)
    try:
        save(agent)
    except SlugTaken:
        if not slug_may_change:
            raise
        agent.slug = _with_suffix(agent.slug)  # somebody was faster
        save(agent)


def slug_of(name: str) -> str:
    """A slug made of the name."""
    return slugify(name)[:40].strip("-_").replace("_", "-") or "agent"


def config_of(values: dict[str, Any]) -> AgentConfig:
    """Raises ValidationFailed."""
    try:
        return AgentConfig(**values)
    except ValidationError as error:
        raise ValidationFailed.of(error, prefix="config.") from None


def _is_taken(slug: str) -> bool:
    return bool(Agent.objects.filter(slug=slug, deleted_at=None).exists())


def _with_suffix(slug: str) -> str:
    return f"{slug[:31].strip('-')}-{uuid.uuid4().hex[:8]}"
