"""One scenario's books: what was accepted, what came of it, and whether the four numbers are 0."""

from __future__ import annotations

import asyncio
import json
import math
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psycopg

from bench.fake_model import answer_text
from tests.acceptance.stack import FINAL
from tests.chaos.ledger import ROWS, Row, wrong
from tests.chaos.listener import Heard, Session
from tests.chaos.rig import Rig
from tests.money import SUMS, wrong_sums

REQUEST_SECONDS = 30.0
POLL_SECONDS = 0.5
# Of each kind of trouble, how many are shown.
SHOWN = 5

# Endings that no message of a session shows.
UNSHOWN = ("failed", "cancelled")

ANSWERS = "SELECT text FROM conversations_message WHERE role = 'assistant' AND task_id = %s"
# Tasks that began before an earlier one of their session had ended.
OUT_OF_TURN = """
SELECT later.id::text FROM core_task AS earlier JOIN core_task AS later USING (serial_key)
WHERE serial_key <> '' AND earlier.ordinal < later.ordinal AND later.id = ANY(%s::uuid[])
AND later.started_at < earlier.finished_at
"""

KEEP_LEFT = """
import datetime
from core import ledger
ledger.LEFT = datetime.timedelta()
ledger.keep_left()
"""

Report = Callable[[dict[str, Any]], None]


@dataclass
class Run:
    """A message that was answered 202, and who listens to its session."""

    task_id: str
    session_id: str
    mark: str
    expected: str
    ending: tuple[str, ...]
    session: Session | None
    token: str
    accepted_at: float

    @property
    def heard(self) -> Heard:
        assert self.session is not None
        return self.session.task(self.task_id)


@dataclass
class Answer:
    """What a POST was answered; status 0 for none at all."""

    status: int
    seconds: float
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Scenario:
    """Makes agents, asks, listens, and in the end looks at everything from every side."""

    name: str
    seed: int
    rig: Rig
    http: aiohttp.ClientSession
    chance: random.Random
    ending: tuple[str, ...] = ("completed",)
    runs: list[Run] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)  # by agent: what a whole answer is
    names: set[str] = field(default_factory=set)  # of the models
    budgets: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    line: dict[str, Any] = field(default_factory=dict)  # when it is over
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    usage: list[str] = field(default_factory=list)
    calls_cut: bool = False  # whether attempts may have ended before their call, or calls unseen
    _listening: set[asyncio.Task[None]] = field(default_factory=set)

    # --- clients -------------------------------------------------------------------------------------

    async def agent(self, tokens: int, *, interval: float = 0.02, **config: Any) -> str:
        """A new agent whose model answers with so many tokens."""
        model = f"fake?tokens={tokens}&interval={interval}&mark={secrets.token_hex(4)}"
        body = {"name": "Chaos", "type": "chaos", "config": {"provider": "openai", "model": model, **config}}
        headers = {"Authorization": f"Bearer {self.rig.api_key}"}
        url = f"{self.rig.base_url}/api/v1/agents"
        async with self.http.post(url, json=body, headers=headers) as response:
            assert response.status == 201, await response.text()
            agent_id: str = (await response.json())["agent_id"]
        self.models[agent_id] = answer_text(tokens)
        self.names.add(model)
        return agent_id

    async def bound(self, agent_id: str, **limits: Any) -> str:
        """A new budget of the agent's; at the end its sums must be those of its calls."""
        body = {"subject": "agent", "agent_id": agent_id, "period": "total", **limits}
        headers = {"Authorization": f"Bearer {self.rig.api_key}"}
        url = f"{self.rig.base_url}/api/v1/budgets"
        async with self.http.post(url, json=body, headers=headers) as response:
            assert response.status == 201, await response.text()
            budget_id: str = (await response.json())["budget_id"]
        self.budgets.append(budget_id)
        await asyncio.sleep(1.1)  # until every process knows that the tenant has one
        return budget_id

    def session(self, **options: Any) -> Session:
        """A client of a new session; it connects, and comes back for ever, once `open` was awaited."""
        options.setdefault("session_id", f"c-{secrets.token_hex(8)}")
        # A client's own chance: what one draws does not depend on how fast another is.
        chance = random.Random(self.chance.getrandbits(64))
        session = Session(self.http, self.rig.base_url, self.rig.tenant_id, chance=chance, **options)
        self.sessions.append(session)
        return session

    async def open(self, session: Session) -> Session:
        """Returns when its first connect has succeeded."""
        self._listening.add(asyncio.create_task(session.listen()))
        await asyncio.wait_for(session.connected.wait(), REQUEST_SECONDS)
        return session

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> Answer:
        """One request, tried once."""
        begun = time.monotonic()
        url, patience = f"{self.rig.base_url}{path}", aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        try:
            async with self.http.post(url, json=body, headers=headers, timeout=patience) as response:
                text = await response.text()
                status, given = (
                    response.status,
                    {name.lower(): value for name, value in response.headers.items()},
                )
        except (aiohttp.ClientError, OSError, TimeoutError):
            return Answer(0, time.monotonic() - begun, {}, {})
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"text": text}
        return Answer(status, time.monotonic() - begun, given, answer)

    async def try_to_ask(
        self,
        agent_id: str,
        session: Session | None = None,
        *,
        ending: tuple[str, ...] | None = None,
        key: str = "",
    ) -> tuple[Answer, Run | None]:
        """A question, put once; with a key, one that may be put again. The run, if it was accepted."""
        mark = key or secrets.token_hex(8)
        body: dict[str, Any] = {"agent_id": agent_id, "message": f"Please answer. {mark}"}
        if session is not None:
            body["session_id"] = session.session_id
        headers = {"Idempotency-Key": f"chaos-{key}-0123456789"} if key else {}
        answer = await self.post("/api/v1/chat/message", body, **headers)
        if answer.status != 202:
            return answer, None
        result = answer.body["result"]
        if session is not None and session.cursor is None:
            session.token, session.cursor = result["resume_token"], 0
        run = Run(
            task_id=result["task_id"],
            session_id=result["session_id"],
            mark=mark,
            expected=self.models[agent_id],
            ending=ending or self.ending,
            session=session,
            token=session.token if session is not None else result.get("resume_token", ""),
            accepted_at=time.monotonic(),
        )
        self.runs.append(run)
        return answer, run

    async def ask(self, agent_id: str, session: Session | None = None, **options: Any) -> Run:
        """A question that must be accepted."""
        answer, run = await self.try_to_ask(agent_id, session, **options)
        assert run is not None, answer
        return run

    async def watched(self, agent_id: str, *, ending: tuple[str, ...] | None = None) -> Run:
        """A question in a session of its own, which somebody hears from before its beginning."""
        return await self.ask(agent_id, await self.open(self.session()), ending=ending)

    async def cancel(self, run: Run) -> Answer:
        return await self.post(f"/api/v1/chat/cancel/{run.task_id}", {})

    async def streaming(self, runs: Iterable[Run], seconds: float = REQUEST_SECONDS) -> None:
        """Returns when each of these runs has been heard to stream."""
        await every(lambda: all(len(run.heard.text) > 0 for run in runs), seconds)

    async def finished(self, seconds: float, runs: Iterable[Run] | None = None) -> float:
        """Seconds until every run (of these) was heard to end, or the time is over: `close` counts those."""
        begun = time.monotonic()
        waited_for = list(self.runs if runs is None else runs)
        polled_at = begun
        while waited_for and time.monotonic() - begun < seconds:
            await asyncio.sleep(0.02)
            waited_for = [run for run in waited_for if run.session is None or not run.heard.ended.is_set()]
            if time.monotonic() - polled_at >= POLL_SECONDS:
                polled_at = time.monotonic()
                final = await asyncio.to_thread(self._final, [run.task_id for run in waited_for])
                for run in list(waited_for):
                    if run.session is None and run.task_id in final:
                        waited_for.remove(run)
                    # Who was given a snapshot asks what became of a task that is not in it.
                    elif run.session and run.session.snapshots and final.get(run.task_id) in UNSHOWN:
                        run.heard.ended.set()
        return time.monotonic() - begun

    def _final(self, task_ids: list[str]) -> dict[str, str]:
        """How those of the tasks have ended that have."""
        query = "SELECT id::text, status FROM core_task WHERE id = ANY(%s::uuid[]) AND status = ANY(%s)"
        try:
            return dict(self.rig.rows(query, task_ids, list(FINAL)))
        except psycopg.OperationalError:
            return {}

    # --- the end -------------------------------------------------------------------------------------

    async def close(self) -> dict[str, Any]:
        """Looks at every accepted task from every side; gives the line to print."""
        await self._settled()
        await self.stop_listening()
        rows = self._rows()
        for session in self.sessions:
            self.gaps += session.gaps
            self.unexpected += session.unexpected
            known = {run.task_id for run in self.runs if run.session_id == session.session_id}
            self.unexpected += [f"{task_id}: never accepted" for task_id in session.tasks.keys() - known]
        gate = asyncio.Semaphore(16)

        async def look(run: Run) -> None:
            async with gate:
                await self._look(run, rows)

        await asyncio.gather(*(look(run) for run in self.runs))
        mine = [run.task_id for run in self.runs]
        self.unexpected += [f"{task_id}: out of turn" for (task_id,) in self.rig.rows(OUT_OF_TURN, mine)]
        self._count_usage(rows)
        await self._count_budgets()
        return self._line(rows)

    async def stop_listening(self) -> None:
        """Raises RuntimeError when a client had stopped by itself, as none ever should."""
        listening, self._listening = self._listening, set()
        for task in listening:
            task.cancel()
        for ended in await asyncio.gather(*listening, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise RuntimeError("a client has stopped listening") from ended

    async def _settled(self) -> None:
        """Callbacks that are still under way are waited for: nothing may follow what was heard."""
        mine = [run.task_id for run in self.runs]
        query = (
            "SELECT count(*) FROM core_task WHERE status <> ALL(%s)"
            " AND (id = ANY(%s::uuid[]) OR global_task_id = ANY(%s::uuid[]))"
        )
        try:
            await every(lambda: self.rig.rows(query, list(FINAL), mine, mine) == [(0,)], 30)
        except TimeoutError:
            pass  # each of them is counted below

    def _rows(self) -> dict[str, tuple[Any, ...]]:
        query = "SELECT id::text, status, attempt, error FROM core_task WHERE id = ANY(%s::uuid[])"
        found = self.rig.rows(query, [run.task_id for run in self.runs])
        return {row[0]: row[1:] for row in found}

    async def _look(self, run: Run, rows: dict[str, tuple[Any, ...]]) -> None:
        """One task as the database, the status, the replayed log, the stream and its client have it."""
        if run.task_id not in rows:
            self.lost.append(f"{run.task_id}: not in the database")
            return
        status, attempt, error = rows[run.task_id]
        if status not in FINAL:
            self.lost.append(f"{run.task_id}: {status} in attempt {attempt}")
            return
        if status not in run.ending:
            self.unexpected.append(f"{run.task_id}: {status} instead of {run.ending}: {error}")
        stored = [row[0] for row in self.rig.rows(ANSWERS, run.task_id)]
        if len(stored) > 1:
            self.duplicated.append(f"{run.task_id}: {len(stored)} answers")
        text = stored[0] if stored else None
        whole = status == "completed"
        if (whole and text != run.expected) or (text is not None and not run.expected.startswith(text)):
            self.unexpected.append(f"{run.task_id}: {(text or '')[-40:]!r} is stored")
        polled = await self._poll(run)
        # A failed task has no output, also where its conversation keeps what was said of an answer.
        shown = text if status == "failed" else (polled["output"] or {}).get("text")
        if polled["status"] != status or (shown or "") != (text or ""):
            self.unexpected.append(f"{run.task_id}: polling shows {polled}")
        told = {"completed": "task_completed", "failed": "task_failed", "cancelled": "cancelled"}[status]
        if run.session is not None:
            self._compare(run, run.heard, told, text, whole)
        await self._replay(run, told, text, whole)

    async def _poll(self, run: Run) -> dict[str, Any]:
        async with self.http.get(f"{self.rig.base_url}/api/v1/chat/status/{run.task_id}") as response:
            result: dict[str, Any] = (await response.json())["result"]
        return result

    def _compare(self, run: Run, heard: Heard, told: str, text: str | None, whole: bool) -> None:
        """What a client heard against what is stored."""
        self.duplicated += [f"{run.task_id}: {words}" for words in heard.doubles]
        said, stored = heard.final_text, text or ""
        if not heard.ended.is_set():
            trail = ", ".join(run.session.trail) if run.session is not None else "nothing"
            self.lost.append(f"{run.task_id}: {told} never came; heard: {trail}")
            return
        if heard.last and heard.last != told:
            self.unexpected.append(f"{run.task_id}: {heard.last} was heard, {told} is true")
        if said is not None and said != stored:
            self.unexpected.append(f"{run.task_id}: heard {said[-40:]!r}, stored {stored[-40:]!r}")
        # Of a log that was lost only the end is told again.
        if whole and heard.attempt and not heard.replaced and heard.text != stored:
            self.unexpected.append(f"{run.task_id}: streamed {heard.text[-40:]!r}, stored {stored[-40:]!r}")

    async def _replay(self, run: Run, told: str, text: str | None, whole: bool) -> None:
        """The task's own stream, read now, is what its client heard, byte for byte."""
        url = f"{self.rig.base_url}/api/v1/chat/stream/{run.task_id}"
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                while True:
                    lines = await self._stream(url)
                    if lines is not None:
                        break
                    await asyncio.sleep(1)
        except (TimeoutError, aiohttp.ClientError) as error:
            self.lost.append(f"{run.task_id}: its stream has no end: {type(error).__name__}")
            return
        replayed = Heard()
        for line in lines:
            event = json.loads(line)
            if event["event"] == "snapshot":
                replayed.replace(run.task_id, event)
            elif words := replayed.take(event, line):
                self.unexpected.append(f"{run.task_id}: in its stream: {words}")
        self._compare(run, replayed, told, text, whole)
        if run.session is None or run.session.snapshots or replayed.replaced:
            return
        if run.heard.raw != replayed.raw:
            heard, held = len(run.heard.raw), len(replayed.raw)
            self.unexpected.append(f"{run.task_id}: {heard} events heard, {held} in its stream")

    async def _stream(self, url: str) -> list[str] | None:
        """The events of a stream that ends, or None where a service is away."""
        async with self.http.get(url) as response:
            if response.status == 503:
                self.figures["streams_503"] = self.figures.get("streams_503", 0) + 1
                return None
            response.raise_for_status()
            body = await response.text()
        return [line.removeprefix("data:").strip() for line in body.split("\n") if line.startswith("data:")]

    # --- usage ---------------------------------------------------------------------------------------

    def _count_usage(self, tasks: dict[str, tuple[Any, ...]]) -> None:
        """One row for every call in the provider's books; an exact row says what the provider said."""
        mine = {run.mark: run for run in self.runs}
        calls: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.rig.books():
            if entry["model"] in self.names:
                mark = str(entry["messages"][-1]["content"]).rpartition(" ")[2]
                calls[mine[mark].task_id if mark in mine else mark].append(entry)
        written: defaultdict[str, list[Row]] = defaultdict(list)
        mine_only = ROWS.format("task_id::text") + " WHERE task_id = ANY(%s::uuid[])"
        for task_id, *columns in self.rig.rows(mine_only, [run.task_id for run in self.runs]):
            written[task_id].append(Row(*columns))
        made = 0
        for run in self.runs:
            entries = calls.pop(run.task_id, [])
            made += len(entries)
            whole = run.task_id in tasks and tasks[run.task_id][0] == "completed"
            cut = self.calls_cut or not whole
            troubles = wrong(entries, written[run.task_id], cut=cut, whole=whole)
            self.usage += [f"{run.task_id}: {words}" for words in troubles]
        self.unexpected += [f"a call of nobody's: {mark}" for mark in calls]
        self.figures["provider_calls"] = made
        self.figures["calls"] = dict(Counter(row.accuracy for rows in written.values() for row in rows))

    async def _count_budgets(self) -> None:
        """Nothing is held any more, and what is spent is what the calls have taken, to the token."""
        if not self.budgets:
            return
        uses = (
            "SELECT sum(held_tokens), sum(spent_tokens) FROM core_budgetuse WHERE budget_id = ANY(%s::uuid[])"
        )
        try:
            # What a dead worker held is counted right after its run was taken over.
            await every(lambda: self.rig.rows(uses, self.budgets)[0][0] == 0, 10)
        except TimeoutError:
            # Its sweeper died in between: what others do twice a minute, now.
            self.figures["kept_later"] = int(self.rig.rows(uses, self.budgets)[0][0])
            self.rig.shell(KEEP_LEFT)
            if self.rig.rows(uses, self.budgets)[0][0]:
                self.usage.append("budgets still hold something")
        self.usage += wrong_sums(self.rig.rows(SUMS, self.budgets))
        [(_, spent)] = self.rig.rows(uses, self.budgets)
        self.figures["budgets_spent"] = int(spent)

    def _line(self, rows: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
        attempts = [row[1] for row in rows.values()]
        return {
            "scenario": self.name,
            "seed": self.seed,
            "accepted": len(self.runs),
            "finished": sum(row[0] in FINAL for row in rows.values()),
            "lost": len(self.lost),
            "duplicated": len(self.duplicated),
            "unexpected": len(self.unexpected),
            "gaps": len(self.gaps),
            "usage_wrong": len(self.usage),
            "most_attempts": max(attempts, default=0),
            "snapshots": sum(len(session.snapshots) for session in self.sessions),
            **self.figures,
            "peak_rss_mb": round(self.rig.peak_rss / 2**20),
        }

    def troubles(self) -> list[str]:
        """What is behind the numbers that are not 0."""
        kinds = ("lost", "duplicated", "unexpected", "gaps", "usage")
        return [f"{kind}: {words}" for kind in kinds for words in getattr(self, kind)[:SHOWN]]


@asynccontextmanager
async def scenario(name: str, rig: Rig, seed: int, report: Report) -> AsyncIterator[Scenario]:
    """What happens inside is looked at, reported in one line, and must have left the four numbers at 0."""
    async with unjudged(name, rig, seed, report) as running:
        yield running
    assert not running.troubles(), "\n".join([*running.troubles(), f"seed {seed}"])


@asynccontextmanager
async def unjudged(name: str, rig: Rig, seed: int, report: Report) -> AsyncIterator[Scenario]:
    """The same, and what it came to is the caller's to judge."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, connect=REQUEST_SECONDS, sock_read=None)
    rig.peak_rss = 0
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as http:
        running = Scenario(name, seed, rig, http, random.Random(f"{name} {seed}"))
        async with rig.supervised():
            await rig.as_usual()
            try:
                yield running
                running.line = await running.close()
            finally:
                await running.stop_listening()
    report(running.line)


async def every(look: Callable[[], bool], seconds: float) -> float:
    """Seconds until it was true. Raises TimeoutError."""
    begun = time.monotonic()
    while not look():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"did not happen within {seconds:g} s")
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p95 and p99, in seconds."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {
        f"p{share}": round(ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share / 100) - 1)], 3)
        for share in (50, 95, 99)
    }
