"""A fake model server on the test's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest_asyncio

from bench.fake_model import FakeModel, Schedule, start
from execution.providers import registry

TOKENS = 6


@dataclass
class Fake:
    """The fake model server and its books."""

    base_url: str

    async def entries(self, model: str) -> list[dict[str, Any]]:
        """What the books say about the requests of that model, the oldest first."""
        books = self.base_url.removesuffix("/v1") + "/_books"
        async with (
            aiohttp.ClientSession() as session,
            session.get(books, params={"model": model}) as response,
        ):
            return list((await response.json())["requests"])

    async def entry(self, model: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The newest entry of that model as soon as it fulfils a condition; at most 5 s."""
        async with asyncio.timeout(5):
            while True:
                entries = await self.entries(model)
                if entries and until(entries[-1]):
                    return entries[-1]
                await asyncio.sleep(0.005)

    async def ended(self, model: str) -> dict[str, Any]:
        """The newest entry of that model when its answer has ended in one way or another."""
        return await self.entry(model, lambda entry: entry["outcome"] != "running")


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[Fake]:
    runner, base_url = await start(FakeModel(Schedule(first_token=0.0, interval=0.0, tokens=TOKENS)))
    yield Fake(base_url)
    await registry.close()
    await runner.cleanup()
