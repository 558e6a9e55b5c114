"""Celery's own worker processes on the transport: what its users expect, kills and restarts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

import pytest
import redis
from celery import Celery
from django.test import override_settings

from core.broker import keeper as keeper_module
from core.broker.keeper import Keeper
from core.broker.scripts import ROOT
from core.leases import LEASE_SECONDS
from nooble.embedded import die_with_parent
from tests.core.broker.conftest import quiet
from tests.core.broker.server import Server, eventually
from tests.core.broker.worker_app import DONE, GATE, RUNS, STARTED, make_app, send

APP = "tests.core.broker.worker_app"
A = "agent:a:execute:normal"
FREE = "tool:a:call:normal"  # no cap

pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")


class Stage:
    """A server, a publisher in this process, and any number of worker processes."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.client = redis.Redis.from_url(server.url)
        self.app: Celery = make_app(server.url)
        self.workers: list[subprocess.Popen[bytes]] = []

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", APP, *words]

    def environment(self, **more: str) -> dict[str, str]:
        return os.environ | {"REDIS_URL": self.server.url} | more

    def worker(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        name = f"w{len(self.workers)}"
        with open(self.directory / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                self.command("worker", "-n", f"{name}@here", "--loglevel=INFO", *words),
                env=self.environment(**environment),
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(Signals.SIGKILL),
            )
        self.workers.append(process)
        return process

    def ready(self) -> None:
        """Every worker that was started consumes."""
        for number, worker in enumerate(self.workers):
            log = self.directory / f"w{number}.log"
            eventually(lambda log=log: b" ready." in log.read_bytes(), 40)
            assert worker.poll() is None

    def say(self, *words: str) -> str:
        """A command of Celery's, as a person types it."""
        done = subprocess.run(
            self.command(*words), env=self.environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def send(self, task: str, name: str, *args: Any, **options: Any) -> str:
        return send(self.app, task, name, *args, **options)

    def runs(self, task_id: str) -> int:
        return int(self.client.hget(RUNS, task_id) or 0)

    def started(self) -> list[str]:
        return [entry.decode() for entry in self.client.lrange(STARTED, 0, -1)]

    def open(self) -> None:
        self.client.rpush(GATE, 1)

    def close(self) -> None:
        self.client.delete(GATE, STARTED, DONE)

    def leases(self) -> int:
        return sum(self.client.hlen(key) for key in self.client.scan_iter(f"{ROOT}:w:*"))

    def running(self, domain: str = "agent") -> int:
        return sum(int(count) for count in self.client.hvals(f"{ROOT}:{domain}:running"))

    def idle(self) -> bool:
        """Nothing waits, runs or is delayed anywhere."""
        domains = ("agent", "tool")
        return not self.leases() and not any(
            self.client.zcard(f"{ROOT}:{domain}:{kind}")
            for domain in domains
            for kind in ("waiting", "delayed")
        )

    def end(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait(10)


def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    server.start()
    stage = Stage(server, tmp_path_factory.mktemp("workers"))
    with override_settings(REDIS_URL=server.url), pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper_module, "_keeper", None)
        try:
            yield stage
        finally:
            stage.end()
            quiet(keeper_module._keeper)
            stage.app.close()
            stage.client.close()
            server.kill()


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Of one test, without workers."""
    yield from staged(tmp_path_factory)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Of all tests that leave a worker as they found it."""
    for stage in staged(tmp_path_factory):
        stage.worker("-c", "4", "-Q", "agent,tool", "-E")
        stage.ready()
        yield stage


@pytest.fixture
def consuming(shared: Stage) -> Iterator[Stage]:
    shared.close()
    yield shared
    shared.open()
    eventually(shared.idle)
    shared.close()


# What Celery's users expect of a worker.


def test_tasks_run_and_are_acked(consuming: Stage) -> None:
    ids = [consuming.send("tests.note", f"agent:t{number}:execute:normal") for number in range(30)]
    eventually(lambda: all(consuming.runs(task) for task in ids))
    eventually(consuming.idle)
    assert {consuming.runs(task) for task in ids} == {1}


def test_inspect_tells_what_runs_by_its_real_name(consuming: Stage) -> None:
    task = consuming.send("tests.hold", A)
    eventually(lambda: task in consuming.started())
    inspect = consuming.app.control.inspect(destination=["w0@here"], timeout=5)
    [active] = inspect.active().values()
    assert [(entry["id"], entry["delivery_info"]["routing_key"]) for entry in active] == [(task, A)]
    assert list(inspect.ping().values()) == [{"ok": "pong"}]
    [queues] = inspect.active_queues().values()
    assert {queue["name"] for queue in queues} == {"agent", "tool"}


def test_no_worker_takes_more_than_it_can_run(consuming: Stage) -> None:
    """One message a slot: what waits, waits where any worker can take it."""
    for _ in range(6):
        consuming.send("tests.hold", FREE)
    eventually(lambda: len(consuming.started()) == 4)
    [reserved] = consuming.app.control.inspect(destination=["w0@here"], timeout=5).reserved().values()
    assert reserved == []
    assert consuming.leases() == 4
    assert int(consuming.client.get(f"{ROOT}:tool:total")) == 2


def test_a_revoked_task_does_not_run(consuming: Stage) -> None:
    consuming.client.hset(f"{ROOT}:limits", "a", "1 1")
    consuming.send("tests.hold", A)
    eventually(lambda: len(consuming.started()) == 1)
    task = consuming.send("tests.note", A)
    consuming.app.control.revoke(task, reply=True, timeout=3)
    consuming.open()
    eventually(consuming.idle)
    assert consuming.runs(task) == 0
    consuming.client.hdel(f"{ROOT}:limits", "a")


def test_a_retry_comes_back_on_its_own_queue_and_waits_without_a_slot(consuming: Stage) -> None:
    task = consuming.send("tests.again", A, 2)
    eventually(lambda: consuming.runs(task) == 1 and consuming.client.zcard(f"{ROOT}:agent:delayed") == 1, 10)
    eventually(lambda: consuming.leases() == 0)
    eventually(lambda: consuming.runs(task) == 2)
    assert consuming.started() == [A, A]


def test_a_countdown_waits_without_a_slot(consuming: Stage) -> None:
    task = consuming.send("tests.note", A, countdown=1.5)
    assert consuming.client.zcard(f"{ROOT}:agent:delayed") == 1
    assert consuming.leases() == 0
    eventually(lambda: consuming.runs(task) == 1)


def test_an_expired_task_does_not_run(consuming: Stage) -> None:
    task = consuming.send("tests.note", A, countdown=1, expires=0.5)
    after = consuming.send("tests.note", A, countdown=1.5)
    eventually(lambda: consuming.runs(after) == 1)
    assert consuming.runs(task) == 0


def test_an_unknown_task_is_a_dead_letter(consuming: Stage) -> None:
    before = consuming.client.llen(f"{ROOT}:dead")
    consuming.send("tests.nobody_knows", A)
    eventually(lambda: consuming.client.llen(f"{ROOT}:dead") == before + 1)
    eventually(consuming.idle)


def test_events_tell_the_life_of_a_task(consuming: Stage) -> None:
    """What Flower lives on."""
    told: list[tuple[str, str]] = []

    def hear(event: dict[str, Any]) -> None:
        told.append((event.get("uuid", ""), event["type"]))

    def hear_on() -> None:
        try:
            hearing.drain_events(timeout=1)
        except TimeoutError:
            pass

    def one_life_was_told() -> bool:
        """Of some task: Celery's buffer of events has no lock, and a pool of threads may drop one."""
        task = consuming.send("tests.note", A)
        deadline = time.monotonic() + 3
        while (task, "task-succeeded") not in told and time.monotonic() < deadline:
            hear_on()
        life = [name for uuid, name in told if uuid == task]
        return {"task-received", "task-succeeded"} <= set(life)

    with consuming.app.connection_for_read() as connection:
        receiver = consuming.app.events.Receiver(connection, handlers={"*": hear})
        with receiver.consumer_context() as (hearing, _, _):
            eventually(one_life_was_told, 90)


def test_queues_can_be_added_and_cancelled_while_it_runs(consuming: Stage) -> None:
    control = consuming.app.control
    task = consuming.send("tests.note", "workflow:a:step:normal")
    control.add_consumer("workflow", reply=True, timeout=3)
    eventually(lambda: consuming.runs(task) == 1)
    control.cancel_consumer("workflow", reply=True, timeout=3)
    left = consuming.send("tests.note", "workflow:a:step:normal")
    other = consuming.send("tests.note", A)
    eventually(lambda: consuming.runs(other) == 1)
    assert consuming.runs(left) == 0
    assert consuming.client.zcard(f"{ROOT}:workflow:waiting") == 1


def test_the_command_line_speaks_to_workers_and_queues(consuming: Stage) -> None:
    told = json.loads(consuming.say("inspect", "active_queues", "--json", "--timeout", "5"))
    [queues] = told.values()
    assert {queue["name"] for queue in queues} == {"agent", "tool"}
    consuming.send("tests.note", "conversation:a:save:normal")
    consuming.send("tests.note", "conversation:b:save:normal", countdown=1000)
    assert "2 messages" in consuming.say("purge", "-f", "-Q", "conversation")
    assert not consuming.client.zcard(f"{ROOT}:conversation:waiting")
    assert not consuming.client.zcard(f"{ROOT}:conversation:delayed")


# Ends.


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_a_plain_queue_and_domains_on_one_worker(stage: Stage, pool: str) -> None:
    stage.worker("-P", pool, "-c", "2", "-Q", "agent,plain")
    stage.ready()
    stage.open()
    ids = [stage.app.send_task("tests.hold", queue="plain").id for _ in range(3)]
    ids += [stage.send("tests.hold", A) for _ in range(3)]
    eventually(lambda: stage.client.llen(DONE) == 6)
    assert sorted(stage.started()) == sorted(ids)
    # SIGTERM: the running task finishes, the waiting one stays for others, and the process ends.
    stage.close()
    running = [stage.send("tests.hold", FREE.replace("tool", "agent")) for _ in range(2)]
    eventually(lambda: sorted(stage.started()) == sorted(running))
    waiting = stage.send("tests.hold", A)
    stage.workers[0].send_signal(SIGTERM)
    eventually(lambda: b"Warm shutdown" in (stage.directory / "w0.log").read_bytes())
    stage.open()
    assert stage.workers[0].wait(30) == 0
    assert stage.client.llen(DONE) == 2
    assert stage.leases() == 0
    assert stage.runs(waiting) == 0
    assert stage.client.llen(f"{ROOT}:agent:m:{A}") == 1


def test_a_killed_workers_messages_are_leased_again_once(stage: Stage) -> None:
    stage.worker("-P", "threads", "-c", "50", "-Q", "tool")
    stage.ready()
    ids = [stage.send("tests.hold", f"tool:t{number % 7}:call:normal") for number in range(50)]
    eventually(lambda: sorted(stage.started()) == sorted(ids))
    stage.worker("-P", "threads", "-c", "60", "-Q", "tool")
    stage.ready()
    stage.workers[0].send_signal(SIGKILL)
    stage.workers[0].wait(10)
    eventually(lambda: stage.client.llen(STARTED) >= 100, LEASE_SECONDS + 5)
    assert Counter(stage.started()) == dict.fromkeys(ids, 2)
    stage.open()
    eventually(stage.idle)
    assert stage.client.llen(DONE) == 50
    assert {stage.runs(task) for task in ids} == {2}
    assert stage.running("tool") == 0


def test_a_broker_that_comes_back_finds_its_workers_and_loses_nothing(stage: Stage) -> None:
    """Killed under load; 3 s away; the same data."""
    workers = [
        stage.worker("-P", "threads", "-c", "8", "-Q", "tool"),
        stage.worker("-P", "threads", "-c", "2", "-Q", "tool"),
    ]
    stage.ready()
    ids: list[str] = []
    holding = [stage.send("tests.hold", FREE) for _ in range(3)]
    eventually(lambda: len(stage.started()) == 3)
    for number in range(1_500):
        ids.append(stage.send("tests.note", f"tool:t{number % 20}:call:normal"))
    eventually(lambda: stage.client.hlen(RUNS) > 100)
    stage.server.kill()
    away_until = time.monotonic() + 3
    eventually(lambda: time.monotonic() > away_until)
    stage.server.start()
    after = stage.send("tests.note", "tool:fresh:call:high")
    eventually(lambda: stage.runs(after) >= 1, 40)
    stage.open()
    eventually(lambda: stage.idle() and not stage.running("tool"), 40)
    assert [worker.poll() for worker in workers] == [None, None]
    assert not [task for task in (*ids, *holding) if not stage.runs(task)]


def test_a_full_worker_that_lost_the_broker_takes_nothing_more(stage: Stage) -> None:
    """What a lost connection brought still runs: the next message is for a worker with a free slot."""
    stage.worker("-P", "threads", "-c", "2", "-Q", "tool")
    stage.ready()
    for _ in range(2):
        stage.send("tests.hold", FREE)
    eventually(lambda: len(stage.started()) == 2)
    stage.server.kill()
    stage.server.start()
    eventually(lambda: (stage.directory / "w0.log").read_bytes().count(b"mingle: all alone") == 2, 40)
    after = stage.send("tests.note", "tool:fresh:call:high")
    stage.worker("-P", "threads", "-c", "2", "-Q", "tool")
    eventually(lambda: stage.runs(after) == 1, 40)
    stage.open()
    eventually(stage.idle)


def test_a_thawed_worker_ends_no_lease_of_another(stage: Stage) -> None:
    """Frozen past its lease, it finishes late: the slot is the second worker's by then."""
    slow = Keeper(stage.client)
    stage.send("tests.hold", A)
    [(tenant, start)] = stage.client.zpopmin(f"{ROOT}:agent:ring")
    leased = slow.lease("agent", tenant.decode(), start)
    assert leased
    stage.client.zadd(f"{ROOT}:workers", {slow.worker: 1})
    stage.worker("-P", "threads", "-c", "2", "-Q", "agent")
    stage.ready()
    eventually(lambda: len(stage.started()) == 1)
    slow.settle(leased[1])
    assert stage.running() == 1
    stage.open()
    eventually(stage.idle)
    assert stage.running() == 0
