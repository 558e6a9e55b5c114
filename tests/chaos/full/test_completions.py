"""Clients of the OpenAI-compatible API while what stands behind it is killed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from signal import Signals
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from bench.fake_model import answer_text
from tests.chaos.rig import Rig, until

TOKENS = 100
SECONDS = 60.0
ASK: Any = [{"role": "user", "content": "Hello"}]


@pytest_asyncio.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with (
        rig.supervised(),
        AsyncOpenAI(base_url=f"{rig.base_url}/v1", api_key=rig.api_key, max_retries=0) as made,
    ):
        await rig.as_usual()
        yield made


def agent(rig: Rig, model: str) -> tuple[str, str]:
    """A new agent's id, and its model's name of its own."""
    model = f"{model}{'&' if '?' in model else '?'}mark={secrets.token_hex(4)}"
    body = {"name": "Chaos", "type": "chaos", "config": {"provider": "openai", "model": model}}
    headers = {"Authorization": f"Bearer {rig.api_key}"}
    answer = rig.http.post(f"{rig.base_url}/api/v1/agents", json=body, headers=headers, timeout=30)
    assert answer.status_code == 201, answer.text
    return answer.json()["agent_id"], model


def calls(rig: Rig, model: str) -> list[dict[str, Any]]:
    return [entry for entry in rig.books() if entry["model"] == model]


async def streamed(client: AsyncOpenAI, agent_id: str) -> str:
    chunks = await client.chat.completions.create(model=agent_id, messages=ASK, stream=True)
    text = reason = ""
    async for chunk in chunks:
        text += chunk.choices[0].delta.content or ""
        reason = chunk.choices[0].finish_reason or reason
    assert reason == "stop"
    return text


async def whole(client: AsyncOpenAI, agent_id: str) -> str:
    [choice] = (await client.chat.completions.create(model=agent_id, messages=ASK)).choices
    assert choice.finish_reason == "stop"
    return choice.message.content or ""


async def through(rig: Rig, client: AsyncOpenAI, fault: Callable[[], Awaitable[None] | None]) -> int:
    """What both kinds of clients get when that happens in the middle is whole; how many calls it took."""
    agent_id, model = agent(rig, f"fake?tokens={TOKENS}&interval=0.03")
    asked = [asyncio.create_task(way(client, agent_id)) for way in (streamed, whole)]
    await until(lambda: [entry["tokens"] > 10 for entry in calls(rig, model)] == [True, True], SECONDS)
    done = fault()
    if done is not None:
        await done
    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(*asked) == [answer_text(TOKENS)] * 2
    return len(calls(rig, model))


async def test_the_workers_are_killed(rig: Rig, client: AsyncOpenAI) -> None:
    """The next attempt says the same: a stream goes on where it was."""
    assert await through(rig, client, lambda: rig.kill("agents-1", "agents-2")) == 4


@pytest.mark.parametrize("lose_data", [False, True], ids=["restarted", "emptied"])
async def test_valkey_is_killed(rig: Rig, client: AsyncOpenAI, lose_data: bool) -> None:
    async def fault() -> None:
        rig.kill_valkey(lose_data=lose_data)
        await rig.start_engine(rig.valkey)

    assert await through(rig, client, fault) == 2


@pytest.mark.parametrize("ask", [streamed, whole], ids=["streamed", "whole"])
async def test_a_web_process_that_stops_cancels_the_completions_that_it_has_open(
    rig: Rig, client: AsyncOpenAI, ask: Callable[[AsyncOpenAI, str], Awaitable[str]]
) -> None:
    """Their clients are cut: nobody takes half an answer for a whole one."""
    agent_id, model = agent(rig, "fake-endless?interval=0.02")
    asked = asyncio.ensure_future(ask(client, agent_id))
    await until(lambda: [entry["tokens"] > 3 for entry in calls(rig, model)] == [True], SECONDS)
    rig.children["web-1"].send(Signals.SIGTERM)
    with pytest.raises(openai.APIConnectionError):
        async with asyncio.timeout(SECONDS):
            await asked
    await until(lambda: [entry["outcome"] for entry in calls(rig, model)] == ["cut"], SECONDS)
    await until(lambda: status(rig, agent_id) == ["cancelled"], SECONDS)


def status(rig: Rig, agent_id: str) -> list[str]:
    rows = rig.rows("SELECT status FROM core_task WHERE agent_id = %s AND action = 'agent.execute'", agent_id)
    return [row[0] for row in rows]
