"""Every socket, and every action that a client may send over one, with another tenant's ids."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.conf import settings

from orchestrator.access import Resume
from orchestrator.consumers import ACTIONS
from orchestrator.routing import websocket_urlpatterns
from tests.isolation.doors import filled
from tests.isolation.world import World, absent_like, everything
from tests.orchestrator.test_updates import opened, play

Meet = Callable[[World, dict[str, Any]], Awaitable[Any]]

# What a client sends in its own session: `$` is tried, `@` is its own.
SAID: dict[str, dict[str, Any]] = {
    "chat.send_message": {"agent_id": "$agent_id", "message": "Hello"},
    "chat.get_status": {"task_id": "$task_id"},
    "chat.cancel_task": {"task_id": "$task_id"},
}


async def with_a_token_of_ones_own(mine: World, tried: dict[str, Any]) -> Any:
    """A resume token of one's own session does not open another's."""
    token = Resume(mine.slug, mine.session.key, 0).token()
    path = f"/ws/{tried['tenant_id']}/{tried['session_id']}"
    async with opened(path, "nooble.v1", f"nooble.resume.{token}") as wire:
        return await wire.refused()


async def with_a_key_of_ones_own(mine: World, tried: dict[str, Any]) -> Any:
    path = f"/ws/tenants/{tried['tenant_id']}/updates"
    async with opened(path, "nooble.v1", f"nooble.bearer.{mine.key}") as wire:
        return await wire.refused()


async def as_a_service_for_a_tenant(mine: World, tried: dict[str, Any]) -> Any:
    """A service speaks for the tenant that it names: of another's task it tells nothing."""
    async with opened("/ws/task_updates") as wire:
        await wire.say(service_token=settings.SERVICE_TOKEN, service_name="agent-execution")
        assert await wire.heard() == {"status": "authenticated"}
        await wire.say(
            event="task_status_update",
            service="agent-execution",
            tenant_id=mine.slug,
            task_id=tried["task_id"],
            timestamp="2026-01-01T00:00:00Z",
            data={"status": "processing", "details": {}},
        )
        return await wire.heard()


async def anywhere_else(mine: World, tried: dict[str, Any]) -> Any:
    async with opened(f"/ws/{tried['tenant_id']}") as wire:
        return await wire.refused()


ROUTES: dict[str, Meet] = {
    "ws/task_updates": as_a_service_for_a_tenant,
    "ws/tenants/<str:tenant_id>/updates": with_a_key_of_ones_own,
    "ws/<str:tenant_id>/<str:session_id>": with_a_token_of_ones_own,
    "": anywhere_else,
}


@pytest.fixture
def mine(transactional_db: None) -> World:
    return World()


@pytest.fixture
def theirs(transactional_db: None) -> World:
    return World()


def test_every_socket_and_every_action_of_theirs_has_a_line() -> None:
    assert {str(pattern.pattern) for pattern in websocket_urlpatterns} == ROUTES.keys()
    assert ACTIONS.keys() == SAID.keys()


@pytest.mark.parametrize("meet", ROUTES.values(), ids=lambda meet: meet.__name__)
def test_what_is_anothers_is_not_there(mine: World, theirs: World, meet: Meet) -> None:
    absent = absent_like(theirs.ids)
    before = everything()
    answers = []

    async def scenario() -> None:
        for tried in (theirs.ids, absent):
            answers.append(await meet(mine, tried))

    play(scenario)
    assert answers[0] == answers[1]
    assert not [mark for mark in theirs.marks() if mark in str(answers)]
    assert everything() == before


@pytest.mark.parametrize("verb", sorted(SAID))
def test_what_a_client_says_in_its_session_is_its_tenants(mine: World, theirs: World, verb: str) -> None:
    absent = absent_like(theirs.ids)
    before = everything()
    answers = []

    async def scenario() -> None:
        async with opened(f"/ws/{mine.slug}/a-new-session") as wire:
            assert (await wire.heard())["event"] == "connection_established"
            for tried in (theirs.ids, absent):
                await wire.say(action=verb, **filled(SAID[verb], mine.ids, tried))
                answer = (await wire.heard())["data"]
                answers.append((answer["success"], answer["error"]))
            # Named as its own, the other tenant is refused as a whole.
            fields = filled(SAID[verb], mine.ids, theirs.ids)
            await wire.say(action=verb, **fields, tenant_id=theirs.slug)
            assert (await wire.heard())["data"]["error"]["type"] == "TenantNotFound"

    play(scenario)
    assert answers[0] == answers[1]
    assert answers[0][0] is False
    assert everything() == before
