"""What somebody else writes into Valkey by hand: refused, noted, never executed; nobody is disturbed."""

from __future__ import annotations

import base64
import json
import os
import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from core.broker.scripts import ROOT
from nooble.embedded import services_file
from tests.acceptance.stack import Stack, new_session, wait_for

DEAD = f"{ROOT}:dead"
CONTENT_TYPES = {"pickle": "application/x-python-serialize", "yaml": "application/x-yaml"}


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Trap:
    """Bodies that leave a directory behind where they are executed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bodies = {
            "pickle": pickle.dumps(Bomb(path)),
            "yaml": f"!!python/object/apply:os.mkdir ['{path}']".encode(),
        }

    def message(
        self,
        kind: str,
        queue: str,
        *,
        content_type: str | None = None,
        encoding: str = "base64",
        body: bytes | None = None,
    ) -> bytes:
        """As kombu would have written it: a task of the platform, its body ours."""
        body = self.bodies[kind] if body is None else body
        task_id = str(uuid.uuid4())
        return json.dumps(
            {
                "body": base64.b64encode(body).decode() if encoding == "base64" else body.decode("latin-1"),
                "content-encoding": "binary",
                "content-type": content_type or CONTENT_TYPES[kind],
                "headers": {"id": task_id, "task": "agent.execute", "lang": "py"},
                "properties": {
                    "correlation_id": task_id,
                    "delivery_tag": str(uuid.uuid4()),
                    "delivery_info": {"exchange": "", "routing_key": queue},
                    "body_encoding": encoding,
                    "delivery_mode": 2,
                    "priority": 0,
                },
            }
        ).encode()


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    made = Trap(tmp_path / "executed")
    pickle.loads(made.bodies["pickle"])
    assert made.path.is_dir(), "the trap must work"
    made.path.rmdir()
    yield made
    assert not made.path.exists()


@pytest.fixture(scope="module")
def valkey(stack: Stack) -> Iterator[redis.Redis]:
    url = json.loads(services_file(stack.home).read_text())["urls"]["redis_url"]
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=3")


@pytest.fixture(autouse=True)
def quiet_log(stack: Stack) -> Iterator[None]:
    """No process ends. What Celery refuses it prints with a traceback."""
    children = stack.children()
    yield
    assert stack.children() == children


@pytest.fixture(autouse=True)
def undisturbed(stack: Stack, agent_id: str, trap: Trap) -> Iterator[None]:
    """Somebody whose turns before and after are whole, on the same queue."""
    session_id = new_session()
    with stack.socket(session_id) as socket:
        stack.ask(agent_id, session_id=session_id)
        socket.turn().check()
        yield
        stack.ask(agent_id, session_id=session_id)
        assert socket.turn().check().order().endswith("Cc")


def letters(valkey: redis.Redis) -> list[bytes]:
    return valkey.lrange(DEAD, 0, -1)


def printed(stack: Stack, begin: int) -> str:
    return stack.log.read_bytes()[begin:].decode(errors="replace")


def put(valkey: redis.Redis, domain: str, tenant: str, queue: str, entry: bytes) -> None:
    """Into a tenant's queue, and the tenant into the ring: as the put script does it."""
    valkey.lpush(f"{ROOT}:{domain}:m:{queue}", entry)
    valkey.zadd(f"{ROOT}:{domain}:q:{tenant}", {queue: 1})
    valkey.zincrby(f"{ROOT}:{domain}:waiting", 1, tenant)
    valkey.incr(f"{ROOT}:{domain}:total")
    valkey.zadd(f"{ROOT}:{domain}:ring", {tenant: 0}, nx=True)


def entry(message: bytes) -> bytes:
    return f"1|1|{uuid.uuid4()}|{uuid.uuid4()}|".encode() + message


QUEUES = ["agent:demo:execute:normal", "orchestrator:demo:websocket_send:high", "tool:demo:call:low"]


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("kind", ["pickle", "yaml"])
def test_a_message_of_another_kind_is_a_dead_letter(
    stack: Stack, valkey: redis.Redis, trap: Trap, kind: str, queue: str
) -> None:
    domain, tenant, *_ = queue.split(":")
    entries = [
        entry(trap.message(kind, queue)),
        entry(trap.message(kind, queue, content_type="application/json")),
        entry(trap.message(kind, queue, encoding="utf-8")),
        entry(trap.message(kind, queue, body=b"[[], {}, {}]")),
        entry(trap.bodies[kind]),
    ]
    for number, message in enumerate(entries, start=len(letters(valkey)) + 1):
        begin = stack.log.stat().st_size
        put(valkey, domain, tenant, queue, message)
        wait_for(lambda number=number: len(letters(valkey)) == number)  # type: ignore[misc]
        assert letters(valkey)[0].startswith(f"{queue}|not a message that a worker can read|".encode())
        told = f"{queue}: what no worker can read is a dead letter now"
        wait_for(lambda begin=begin, told=told: told in printed(stack, begin))  # type: ignore[misc]
    assert valkey.zscore(f"{ROOT}:{domain}:waiting", tenant) is None


@pytest.mark.parametrize("kind", ["pickle", "yaml"])
def test_what_is_no_entry_of_a_queue_is_a_dead_letter(valkey: redis.Redis, trap: Trap, kind: str) -> None:
    before = len(letters(valkey))
    put(valkey, "agent", "demo", QUEUES[0], trap.bodies[kind])
    wait_for(lambda: len(letters(valkey)) == before + 1)
    assert letters(valkey)[0] == f"{QUEUES[0]}|not a message|".encode() + trap.bodies[kind]


@pytest.mark.parametrize("kind", ["pickle", "yaml"])
def test_a_dead_workers_leases_are_no_other_door(valkey: redis.Redis, trap: Trap, kind: str) -> None:
    queue, before = QUEUES[0], len(letters(valkey))
    lease = f"agent|demo|{queue}|".encode() + entry(trap.message(kind, queue))
    valkey.hset(f"{ROOT}:w:nobody", "tag", lease)
    valkey.zadd(f"{ROOT}:workers", {"nobody": 1})
    wait_for(lambda: len(letters(valkey)) == before + 1)


@pytest.mark.parametrize("kind", ["pickle", "yaml"])
def test_what_is_delayed_is_no_other_door(valkey: redis.Redis, trap: Trap, kind: str) -> None:
    queue, before = QUEUES[0], len(letters(valkey))
    valkey.zadd(f"{ROOT}:agent:delayed", {f"demo|{queue}|".encode() + entry(trap.message(kind, queue)): 1})
    wait_for(lambda: len(letters(valkey)) == before + 1)


@pytest.mark.parametrize("kind", ["pickle", "yaml"])
@pytest.mark.parametrize("name", ["agent", "orchestrator", "celery", QUEUES[0]])
def test_lists_that_stock_workers_read_are_read_by_nobody(
    stack: Stack, valkey: redis.Redis, trap: Trap, name: str, kind: str
) -> None:
    valkey.lpush(name, trap.message(kind, name))
    session_id = new_session()
    with stack.socket(session_id) as socket:
        stack.ask(stack.agent("fake?tokens=2"), session_id=session_id)
        socket.turn().check()
    assert valkey.llen(name) == 1
    valkey.delete(name)


@pytest.mark.parametrize("kind", ["pickle", "yaml", "raw"])
def test_control_messages_of_another_kind_are_refused(
    stack: Stack, valkey: redis.Redis, trap: Trap, kind: str
) -> None:
    """What `celery inspect` and `celery control` use: every worker listens."""
    raw = kind == "raw"
    message = trap.bodies["pickle"] if raw else trap.message(kind, "celery.pidbox")
    begin = stack.log.stat().st_size
    workers = valkey.publish("/0.celery.pidbox", message)
    assert workers >= 2
    told = "Cannot process event on channel" if raw else "Refusing to deserialize untrusted content"
    wait_for(lambda: printed(stack, begin).count(told) >= workers)
