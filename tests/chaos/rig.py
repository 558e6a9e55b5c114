"""A whole platform that tests may break: engines, web, workers, beat and the fake model, each a process.

Unlike the supervisor of `make run` it starts nothing again by itself, unless a test asks for that with
`supervised`. It kills only what it started.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any

import psutil
import psycopg
import requests

from bench.processes import Process
from nooble.embedded import Engine, Engines, PostgreSQL, Services, Valkey, die_with_parent, discard
from nooble.env import ROOT, Environment
from nooble.run import Child, nooble_stack
from tests.acceptance.stack import FAKE_KEY, clean_environment, http_session
from tests.engines import HOMES

PREFIX = "nooble-chaos-"
START_SECONDS = 120.0
RESTART_SECONDS = 0.5  # as the supervisor of `make run`
SAMPLE_SECONDS = 0.5
LAUNCHER = "tests.chaos.launcher"
# What runs unless a test says otherwise; the second web and the second beat only where one is needed.
USUAL = ("web-1", "agents-1", "agents-2", "domains-1", "beat-1")


class Service:
    """One child of the platform, as `make run` starts it, or under the launcher with a fault built in."""

    def __init__(self, child: Child, environment: Mapping[str, str], log: Path) -> None:
        self.name = child.name
        self.log = log
        self._child = child
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._begin = 0  # of what this process printed
        self.alteration: dict[str, str] = {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Call it in the main thread: the child's life hangs on the thread that started it."""
        command = list(self._child.command)
        if self.alteration:
            module = command.index("-m") + 1
            command[module:module] = [LAUNCHER]
        with self.log.open("ab") as output:
            self._begin = output.tell()
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self._environment, **self.alteration},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self._child.pass_fds,
                preexec_fn=die_with_parent(Signals.SIGKILL),
            )

    def consumes(self) -> bool:
        """Whether this worker takes messages by now, in its own words."""
        if not self.runs:
            raise RuntimeError(f"{self.name} ended with {self.returncode}:\n{self.printed()[-4_000:]}")
        return "ready." in self.printed()

    def printed(self) -> str:
        """What this process, not its predecessors, has printed so far."""
        with self.log.open("rb") as output:
            output.seek(self._begin)
            return output.read().decode(errors="replace")

    def send(self, number: Signals) -> None:
        if self.runs:
            assert self._process is not None
            self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, and nothing of it is left."""
        if self._process is None:
            return
        self.send(Signals.SIGKILL)
        self._process.wait()

    async def ended(self, seconds: float) -> None:
        """Returns when the process has ended by itself. Raises TimeoutError."""
        await until(lambda: not self.runs, seconds)


@dataclass
class Rig:
    """The running platform, and what tests do to it."""

    home: Path
    base_url: str
    model_url: str
    tenant_id: str
    api_key: str
    engines: Engines
    services: Services
    children: dict[str, Service]
    environment: dict[str, str]
    http: requests.Session
    peak_rss: int = 0
    wanted: set[str] = field(default_factory=lambda: set(USUAL))
    unjudged: set[str] = field(default_factory=set)  # models of scenarios that were meant to fail

    # --- engines -----------------------------------------------------------------------------------

    @property
    def valkey(self) -> Valkey:
        return next(engine for engine in self.engines.running if isinstance(engine, Valkey))

    @property
    def postgres(self) -> PostgreSQL:
        return next(engine for engine in self.engines.running if isinstance(engine, PostgreSQL))

    def kill_valkey(self, *, lose_data: bool = False) -> None:
        _signal(self.valkey, Signals.SIGKILL)
        if lose_data:
            shutil.rmtree(self.valkey.base / "appendonlydir")

    def stop_postgres(self) -> None:
        """A fast shutdown: sessions are ended, what was committed is on disk."""
        _signal(self.postgres, Signals.SIGINT)

    async def start_engine(self, engine: Engine) -> None:
        """Again, with the data that is there; returns when it answers."""
        engine.spawn()
        await until(engine.ready, START_SECONDS)

    def freeze(self, engine: Engine) -> None:
        assert engine.process is not None
        engine.process.send_signal(Signals.SIGSTOP)

    def thaw(self, engine: Engine) -> None:
        assert engine.process is not None
        engine.process.send_signal(Signals.SIGCONT)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        url = self.services.database_owner_url
        with psycopg.connect(url, autocommit=True, options="-c nooble.tenant=*") as connection:
            return connection.execute(query, values).fetchall()  # type: ignore[arg-type]

    def shell(self, source: str) -> str:
        """The last line that the source prints in a process of the platform's own."""
        done = subprocess.run(
            [sys.executable, "manage.py", "shell", "--no-imports", "-c", source],
            cwd=ROOT,
            env=self.environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().rpartition("\n")[2]

    def books(self) -> list[dict[str, Any]]:
        """What the fake model wrote down of every request, the oldest first."""
        entries: list[dict[str, Any]] = self.http.get(f"{self.model_url.removesuffix('/v1')}/_books").json()[
            "requests"
        ]
        return entries

    # --- children ----------------------------------------------------------------------------------

    def kill(self, *names: str) -> None:
        """`kill -9`; under `supervised` they come back."""
        for name in names:
            self.children[name].kill()

    def rest(self, *names: str) -> None:
        """Not wanted for a while."""
        self.wanted -= set(names)
        self.kill(*names)

    async def wake(self, *names: str) -> None:
        """Wanted, and ready when this returns."""
        for name in names:
            if not self.children[name].runs:
                self.children[name].start()
        self.wanted |= set(names)
        for name in names:
            await self.ready(name)

    async def as_usual(self) -> None:
        """The engines and every usual child run, whatever a scenario that failed has left; no other does."""
        for engine in self.engines.running:
            if engine.exited():
                await self.start_engine(engine)
            self.thaw(engine)
        for child in self.children.values():
            child.send(Signals.SIGCONT)
        self.rest(*(self.wanted - set(USUAL)))
        await self.wake(*USUAL)

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[None]:
        """Meanwhile whatever ends is started again after half a second, and memory is watched."""
        task = asyncio.create_task(self._supervise())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()

    async def _supervise(self) -> None:
        due: dict[str, float] = {}
        sample_at = 0.0
        while True:
            now = time.monotonic()
            for name in self.wanted:
                child = self.children[name]
                if child.runs:
                    due.pop(name, None)
                elif due.setdefault(name, now + RESTART_SECONDS) <= now:
                    child.start()
            if now >= sample_at:
                sample_at = now + SAMPLE_SECONDS
                self.sample()
            await asyncio.sleep(0.05)

    def sample(self) -> None:
        """Notes the resident bytes of the largest child."""
        for child in self.children.values():
            try:
                if child.runs:
                    self.peak_rss = max(self.peak_rss, psutil.Process(child.pid).memory_info().rss)
            except psutil.NoSuchProcess:
                continue

    async def restart(self, names: Sequence[str], alteration: dict[str, str] | None = None) -> None:
        """Ends these children with `kill -9` and starts them again, altered or as they should be."""
        for name in names:
            self.children[name].kill()
            self.children[name].alteration = alteration or {}
            self.children[name].start()
        for name in names:
            await self.ready(name)

    @asynccontextmanager
    async def altered(self, names: Sequence[str], **alteration: str) -> AsyncIterator[None]:
        """Meanwhile these children run under the launcher, with these variables."""
        await self.restart(names, {key.upper(): value for key, value in alteration.items()})
        try:
            yield
        finally:
            await self.restart(names)

    async def ready(self, name: str) -> None:
        """Returns when the child does its work."""
        if name.startswith("web"):
            await until(self._answers, START_SECONDS)
        elif not name.startswith("beat"):
            await until(self.children[name].consumes, START_SECONDS)

    def _answers(self) -> bool:
        try:
            return self.http.get(f"{self.base_url}/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def tail(self, characters: int = 2_000) -> str:
        """The end of what each child printed."""
        parts = []
        for child in self.children.values():
            if child.log.exists():
                text = child.log.read_bytes()[-characters:].decode(errors="replace")
                parts.append(f"--- {child.name}\n{text}")
        return "\n".join(parts)


async def until(look: Callable[[], bool], seconds: float) -> float:
    """Seconds until it was true. Raises TimeoutError."""
    begun = time.monotonic()
    while not await asyncio.to_thread(look):
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"did not happen within {seconds:g} s")
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


def _signal(engine: Engine, number: Signals) -> None:
    """Ends the engine's process and waits until it is gone."""
    assert engine.process is not None
    engine.process.send_signal(number)
    engine.process.wait(30)


def start(cleanup: ExitStack) -> Rig:
    """The engines, the model and the usual children, all ready; the exit stack takes them down."""
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=HOMES))
    cleanup.callback(discard, home)
    engines = Engines()
    cleanup.callback(engines.stop)
    # Beside the start of the engines, which takes longer.
    ready = home / "fake-model.json"
    command = (sys.executable, "-m", "bench.fake_model", "--port", "0", "--ready-file", str(ready))
    schedule = ("--first-token", "0.02", "--interval", "0.02", "--tokens", "50")
    fake = Process((*command, *schedule), clean_environment(), home / "fake-model.log")
    cleanup.callback(fake.stop)
    services = engines.start(home)
    model_url = fake.wait_for(ready, START_SECONDS)["base_url"]

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    cleanup.callback(listener.close)
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    environment = clean_environment() | {
        "NOOBLE_HOME": str(home),
        "PORT": str(listener.getsockname()[1]),
        "DATABASE_URL": services.database_url,
        "REDIS_URL": services.redis_url,
        "OPENAI_BASE_URL": model_url,
        "OPENAI_API_KEY": FAKE_KEY,
        "NOOBLE_OUTBOUND_ALLOW": "127.0.0.1/32",
        "PYTHONUNBUFFERED": "1",
    }
    _manage(environment | {"DATABASE_URL": services.database_owner_url}, "migrate", "--no-input")
    demo = json.loads(_manage(environment, "seed_demo").splitlines()[-1])

    rig = Rig(
        home=home,
        base_url=base_url,
        model_url=model_url,
        tenant_id=demo["tenant_id"],
        api_key=demo["api_key"],
        engines=engines,
        services=services,
        children={},
        environment=environment,
        http=cleanup.enter_context(http_session()),
    )
    for child in _children(environment, listener):
        service = rig.children[child.name] = Service(child, environment, home / f"{child.name}.log")
        cleanup.callback(service.kill)
    for name in USUAL:
        rig.children[name].start()
    for name in USUAL:
        asyncio.run(rig.ready(name))
    return rig


def _manage(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _children(environment: dict[str, str], listener: socket.socket) -> list[Child]:
    """The supervisor's own command lines, twice; workers are told apart by their node names."""
    env = Environment(_env_file=None, log_level="INFO")
    children = []
    for child in nooble_stack(env, listener).children:
        for number in ("1", "2"):
            command = [word.replace(f"{child.name}@", f"{child.name}-{number}@") for word in child.command]
            children.append(dataclasses.replace(child, name=f"{child.name}-{number}", command=command))
    return children
