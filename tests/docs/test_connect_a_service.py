"""docs/how-to/connect-a-service.md: its names are the code's, and its client survives the loss of Daphne."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import types
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection

from agents.models import Agent
from core.actions.registry import can_handle
from core.models import Notice, Task, Tenant
from core.models.task import TaskStatus
from core.queues.names import ALIASES, NoQueue, Priority, QueueFilter
from nooble.embedded import die_with_parent
from nooble.env import ROOT
from orchestrator.handlers.services import FIRST_NAMES, SHAPES
from tests.core.broker.server import eventually
from tests.factories import make_agent, make_task

PAGE = ROOT / "docs" / "how-to" / "connect-a-service.md"
TOKEN = "only-for-tests-service-token"
PATIENCE = 60  # seconds


def program() -> str:
    """The one whole program of the page."""
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return str(block)


class Web:
    """Daphne, as the platform starts it, on the test's database and on one port for good."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self._port}/ws/task_updates"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        database = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{connection.settings_dict['NAME']}")
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daphne", "-v", "0", "-p", str(self._port), "nooble.asgi:application"],
                cwd=ROOT,
                env=os.environ | {"DATABASE_URL": database.geturl()},
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent(SIGKILL),
            )

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """As its operator would."""
        if self._process is not None:
            self._process.send_signal(SIGCONT)
            self._process.terminate()
            self._process.wait(PATIENCE)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)


@pytest.fixture
def web(committed_tenant: Tenant, tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path / "web.log")
    made.start()
    try:
        eventually(made.listens, PATIENCE)
        yield made
    finally:
        made.stop()


class Naps:
    """`asyncio` as the client sees it: its pauses are written down, and a hundredth as long."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(seconds / 100)

    async def reach(self, number: int) -> None:
        """Returns when there have been so many."""
        async with asyncio.timeout(PATIENCE):
            while len(self.seconds) < number:  # noqa: ASYNC110 - the client knows nothing of us
                await asyncio.sleep(0.01)


@pytest.fixture
def naps() -> Naps:
    return Naps()


@asynccontextmanager
async def connected(naps: Naps, url: str, token: str = TOKEN, **more: Any) -> AsyncIterator[Any]:
    module = types.ModuleType("notifier")
    exec(compile(program(), str(PAGE), "exec"), module.__dict__)
    module.__dict__["asyncio"] = naps
    notifier = module.__dict__["AgentManagementNotifier"](url, token)
    vars(notifier).update(more)
    connection = asyncio.create_task(notifier.connect())
    try:
        yield notifier
    finally:
        connection.cancel()
        await asyncio.wait({connection})
        assert connection.cancelled(), connection.exception()


async def change(notifier: Any, agent: Agent) -> dict[str, Any]:
    answer: dict[str, Any] = await notifier.notify_agent_updated(
        None, agent.tenant_id, {"agent_id": str(agent.pk)}
    )
    return answer


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def told() -> list[tuple[str, Any]]:
    return [(notice.event, notice.body["data"]) for notice in Notice.unscoped.order_by("pk")]


def test_what_it_tells_is_heard(web: Web, naps: Naps, committed_tenant: Tenant) -> None:
    tenant_id = committed_tenant.pk
    task, agent = make_task(committed_tenant), make_agent(committed_tenant)
    of_task, about = (
        (str(task.pk), tenant_id),
        {"agent_id": str(agent.pk), "name": "Ada", "type": "assistant"},
    )

    async def scenario() -> None:
        async with connected(naps, web.url) as notifier:
            answers = [
                await notifier.notify_task_status(*of_task, "processing", {"step": 1}),
                await notifier.notify_task_completion(*of_task, {"agents": 3}),
                await notifier.notify_task_failure(*of_task, ValueError("It was odd.")),
                await notifier.notify_agent_created(None, tenant_id, about),
                await notifier.notify_agent_updated(
                    None, tenant_id, {**about, "version": "2.0", "changes": ["name"]}
                ),
            ]
            assert [answer["success"] for answer in answers] == [True] * 5
            # What is refused is an answer, too, whether or not the platform could read whose it is.
            for nobody, kind in (("nobody", "TenantNotFound"), ("NOBODY", "ValidationFailed")):
                answer = await notifier.notify_agent_created(None, nobody, about)
                assert (answer["success"], answer["error"]["type"]) == (False, kind)
            answer = await notifier.notify_task_status(str(uuid.uuid4()), tenant_id, "processing")
            assert answer["error"]["type"] == "TaskNotFound"

    play(scenario)
    agent_id = {"agent_id": str(agent.pk)}
    rest = {"agent_name": "", "agent_type": "", "version": "1.0", "changes": []}
    assert told() == [
        ("task_status_update", {"status": "processing", "details": {"step": 1}}),
        ("task_completed", {"agents": 3}),
        ("task_failed", {"error": "It was odd.", "error_type": "ValueError"}),
        ("agent_created", {**rest, **agent_id, "agent_name": "Ada", "agent_type": "assistant"}),
        ("agent_updated", {**rest, **agent_id, "version": "2.0", "changes": ["name"]}),
    ]
    assert {notice.body["service"] for notice in Notice.unscoped.all()} == {"agent-management"}


def test_it_comes_back_ever_more_slowly(web: Web, naps: Naps, committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)

    async def scenario() -> None:
        async with connected(naps, web.url) as notifier:

            async def tell() -> dict[str, Any]:
                return await change(notifier, agent)

            assert (await tell())["success"]
            assert naps.seconds == []
            await asyncio.to_thread(web.kill)
            waiting = asyncio.create_task(tell())  # told into the dark
            await naps.reach(12)
            assert naps.seconds[:4] == [1.0, 1.5, 2.25, 3.375]
            assert naps.seconds[8:12] == [1.5**8, 30.0, 30.0, 30.0]
            web.start()
            assert (await waiting)["success"]
            # After a success it begins anew; this time the platform says goodbye.
            naps.seconds.clear()
            await asyncio.to_thread(web.stop)
            await naps.reach(2)
            assert naps.seconds[:2] == [1.0, 1.5]
            web.start()
            assert (await tell())["success"]

    play(scenario)
    assert len(told()) == 3


def test_its_pings_notice_a_platform_that_hangs(web: Web, naps: Naps, committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)

    async def scenario() -> None:
        async with connected(naps, web.url, ping_interval=0.5) as notifier:
            assert notifier.__class__.ping_interval == 30.0
            await change(notifier, agent)
            await asyncio.sleep(2)
            assert naps.seconds == []
            web.send(SIGSTOP)
            await naps.reach(1)
            web.send(SIGCONT)
            answer = await notifier.notify_agent_updated(
                None, committed_tenant.pk, {"agent_id": str(agent.pk)}
            )
            assert answer["success"]

    play(scenario)


def test_who_has_another_token_never_comes_in(web: Web, naps: Naps) -> None:
    async def scenario() -> None:
        async with connected(naps, web.url, "another") as notifier:
            await naps.reach(3)
            assert naps.seconds == [1.0, 1.5, 2.25]
            assert notifier.reconnect_delay > 1.0

    play(scenario)


def test_the_page_is_a_program(web: Web, committed_tenant: Tenant, tmp_path: Path) -> None:
    agent = make_agent(committed_tenant)
    file = tmp_path / "notifier.py"
    file.write_text(program())
    done = subprocess.run(
        [sys.executable, str(file), committed_tenant.pk, str(agent.pk)],
        env={"ORCHESTRATOR_WS_URL": web.url, "SERVICE_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "'success': True" in done.stdout
    assert [event for event, _ in told()] == ["agent_updated"]


# --- Names -----------------------------------------------------------------------------------------


def table(*header: str) -> list[list[str]]:
    """The rows of the page's table with that header, cell by cell."""
    lines = PAGE.read_text().splitlines()
    begin = lines.index(f"| {' | '.join(header)} |") + 2
    rows = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        rows.append(line.strip("| ").split(" | "))
    return rows


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def requests_of(cell: str) -> set[tuple[str, str]]:
    found = re.findall(r"`(GET|POST|PATCH) ([^`]+)`", cell)
    return {(method, path) for method, path in found}


def endpoints() -> set[tuple[str, str]]:
    page = (ROOT / "docs" / "endpoints.md").read_text()
    return set(re.findall(r"^\| \w+ \| ([A-Z]+) \| `([^`]+)` \|", page, re.MULTILINE))


def test_every_event_that_is_taken_is_on_the_page() -> None:
    names = [name for row in table("event", "goes to") for name in quoted(row[0])]
    assert sorted(names) == sorted(SHAPES)
    for alias, name in FIRST_NAMES.items():
        assert alias in names and name in names


def test_every_name_of_a_queue_is_on_the_page_and_means_that() -> None:
    rows = table("there", "here")
    names = {re.split(r"\{", quoted(there)[0])[0]: here for there, here in rows}
    assert list(names) == list(ALIASES)
    for there, here in rows:
        spelled = re.sub(r"\{\w+\}", "acme", quoted(there)[0])
        if here.startswith("none: "):
            with pytest.raises(NoQueue):
                QueueFilter.parse(spelled)
            assert requests_of(here) <= endpoints()
        else:
            asked = QueueFilter.parse(spelled)
            assert here == f"`{asked.domain}:{{tenant_id}}:{asked.action or '*'}:*`"
            assert asked.tenant_id == "acme"


def test_every_type_of_message_is_asked_for_somewhere() -> None:
    rows = table("type", "here", "ask by")
    verbs = [verb for row in rows for verb in quoted(row[1])]
    assert verbs and all(can_handle(verb) for verb in verbs)
    asked = set[tuple[str, str]]().union(*(requests_of(row[2]) for row in rows))
    assert len(asked) == 7
    assert asked <= endpoints()


def test_a_messages_fields_are_a_tasks() -> None:
    rows = {quoted(there)[0]: (quoted(there), quoted(here)) for there, here in table("field", "here")}
    fields = {field.attname for field in Task._meta.get_fields() if hasattr(field, "attname")}
    assert set(rows["task_id"][0]) - {"task_id"} <= fields
    assert rows["status"][1] == [
        *("pending", "processing", "completed", "failed"),
        *("queued", "cancelling", "cancelled"),
    ]
    assert set(rows["status"][1]) == set(TaskStatus.values) - {"waiting"}
    for number, word in ((2, "low"), (3, "normal"), (6, "normal"), (7, "high")):
        assert Priority(number).word == word
    assert rows["priority"][1] == ["low", "normal", "high"]
