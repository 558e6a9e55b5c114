"""`python -m nooble.run`: everything on one machine; the supervisor behind `make run`.

It owns the engines and four kinds of children: web, the agents' worker, the worker of every other
domain, and beat. One thread and one asyncio loop: a child's life may hang on the thread that
started it, and a fork among threads is not safe.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import IO, Any

from core.queues.names import DOMAINS
from nooble.embedded import (
    START_SECONDS,
    Engine,
    EngineError,
    Engines,
    Services,
    die_with_parent,
    services_file,
    start_time,
    write_private,
)
from nooble.env import ROOT, Environment, environment

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
STEADY_SECONDS = 30.0
POLL_SECONDS = 0.05
IMPATIENCE_SECONDS = 30.0

MAX_PENDING_OUTPUT = 4 * 1024 * 1024


class StartError(Exception):
    """The stack cannot come up; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Child:
    """A process to keep alive. At the end, children of a lower `stage` are stopped first."""

    name: str
    command: Sequence[str]
    stage: int = 0
    patience: float = 20.0
    pass_fds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stack:
    """What the supervisor brings up, between the engines and `demo.json`."""

    children: Sequence[Child]
    migrate: Sequence[str] = ()
    seed: Sequence[str] = ()
    health: str = ""


def nooble_stack(env: Environment, listener: socket.socket) -> Stack:
    """The platform. Web serves a socket of ours: while it restarts, callers wait instead of failing."""
    python, manage = sys.executable, (sys.executable, "manage.py")
    # Quiet: no banner. That a worker runs as root is known; a development machine may be a container.
    celery = (python, "-W", "ignore:You're running the worker", "-m", "celery", "-q", "-A", "celery_app")
    # Gossip and mingle are for workers that watch each other; mingle would cost a second at every start.
    worker = (*celery, "worker", "--loglevel", env.log_level, "--without-gossip", "--without-mingle")
    agent, *others = DOMAINS
    descriptor = listener.fileno()
    return Stack(
        migrate=(*manage, "migrate", "--no-input", "--verbosity", "0"),
        seed=(*manage, "seed_demo"),
        health="/health/detailed",
        children=(
            Child(
                "web",
                (python, "-m", "daphne", "-v", "0", "--fd", str(descriptor), "nooble.asgi:application"),
                patience=10,
                pass_fds=(descriptor,),
            ),
            Child("agents", (*worker, "-Q", agent, "-n", "agents@%h"), stage=1),
            Child("domains", (*worker, "-Q", ",".join(others), "-n", "domains@%h"), stage=1),
            Child("beat", (*celery, "beat", "--loglevel", env.log_level), stage=2, patience=5),
        ),
    )


class Terminal:
    """Our standard output, one prefixed line at a time.

    Never blocks: where the reader does not keep up, lines are dropped, or a full pipe would stop
    the whole platform. Where it has gone away, nothing is written any more.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._scheduled = False
        self._gone = False

    def line(self, name: str, text: str) -> None:
        if not self._gone and len(self._pending) < MAX_PENDING_OUTPUT:
            self._pending += f"{name:<8}| {text}\n".encode(errors="replace")
            self._write()

    def _write(self) -> None:
        try:
            # A pipe that is writable takes PIPE_BUF bytes without blocking.
            while self._pending and select.select([], [1], [], 0)[1]:
                del self._pending[: os.write(1, self._pending[: select.PIPE_BUF])]
        except OSError:
            self._gone = True
            self._pending.clear()
        if self._pending and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(POLL_SECONDS, self._write_later)

    def _write_later(self) -> None:
        self._scheduled = False
        self._write()

    async def drain(self) -> None:
        """Gives the reader a moment for the last lines."""
        for _ in range(20):
            if not self._pending:
                return
            await asyncio.sleep(POLL_SECONDS)


class Pipe:
    """A child's output, handed on line by line."""

    def __init__(self, pipe: IO[bytes] | None, take: Callable[[str], None]) -> None:
        assert pipe is not None
        self._pipe = pipe
        self._take = take
        self._rest = b""
        os.set_blocking(pipe.fileno(), False)
        asyncio.get_running_loop().add_reader(pipe.fileno(), self.read)

    def read(self) -> bool:
        """Hands on what has come; False when there is no more for now, or at all."""
        if self._pipe.closed:
            return False
        try:
            data = os.read(self._pipe.fileno(), 65536)
        except BlockingIOError:
            return False
        *whole, self._rest = (self._rest + data).split(b"\n")
        if not data:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
            whole = [self._rest] if self._rest else []
        for line in whole:
            self._take(line.decode(errors="replace").rstrip())
        return bool(data)


@dataclass(eq=False)
class Running:
    """A process that we started, and whether it has ended."""

    name: str
    process: subprocess.Popen[bytes]
    pipes: Sequence[Pipe] = ()
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    swept: bool = False

    def outcome(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        return f"signal {Signals(-code).name}" if code < 0 else f"exit code {code}"


class Supervisor:
    """Brings the stack up, keeps it up, and takes it down in order."""

    def __init__(
        self, env: Environment, make_stack: Callable[[Environment, socket.socket], Stack] = nooble_stack
    ) -> None:
        self._env = env
        self._home = env.nooble_home
        self._make_stack = make_stack
        self._terminal = Terminal()
        self._engines = Engines()
        self._mourner: subprocess.Popen[bytes] | None = None
        self._listener: socket.socket | None = None
        self._child_env: dict[str, str] = {}
        self._children: dict[Child, Running] = {}
        self._spawned: set[Running] = set()
        self._watched: set[Running] = set()
        self._keepers: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Until a signal (0) or a start that fails (1). Whatever happens, everything is taken down."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(Signals.SIGCHLD, self._reap)
        for number in (Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP):
            # A terminal's Ctrl-C and make's own signal may both arrive: the second finds the event set.
            # Under nohup SIGHUP stays ignored.
            if number != Signals.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._stop.set)
        try:
            self._claim()
            bringing_up = asyncio.create_task(self._bring_up())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait((bringing_up, stopping), return_when=asyncio.FIRST_COMPLETED)
            if bringing_up.done():
                bringing_up.result()
                await stopping
            else:
                bringing_up.cancel()
                await asyncio.wait((bringing_up,))
        except (StartError, EngineError, OSError) as error:
            self._say(f"cannot start: {error}")
            return 1
        finally:
            await self._take_down()
        return 0

    # --- up --------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Everything that may refuse the start, before anything is started."""
        if self._env.nooble_env != "dev":
            raise StartError("`make run` is for development; NOOBLE_ENV must be dev or unset")
        addresses = self._addresses()
        if not self._env.nooble_dev_public and not all(
            ipaddress.ip_address(a[1][0]).is_loopback for a in addresses
        ):
            raise StartError(
                f"HOST={self._env.host} can be reached from other machines, and a development platform has "
                "known passwords: set NOOBLE_DEV_PUBLIC=1 if that is what you want"
            )
        self._engines.claim(self._home)
        self._demo_file().unlink(missing_ok=True)
        self._mourner = self._start_mourner()
        self._end_earlier_children()
        self._listener = self._listen(*addresses[0])

    def _start_mourner(self) -> subprocess.Popen[bytes]:
        """Should we be killed, takes back what says that we are there, which the next start would do late."""
        # Its standard input ends when we do, however that happens.
        return subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                'read -r _; /bin/rm -f "$@"',
                "sh",
                self._demo_file(),
                services_file(self._home),
            ],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _addresses(self) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
        """What HOST and PORT stand for, IPv4 first."""
        try:
            found = socket.getaddrinfo(self._env.host, self._env.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise StartError(f"HOST={self._env.host}: {error.strerror}") from None
        return sorted(((item[0], item[4]) for item in found), key=lambda item: item[0] != socket.AF_INET)

    def _listen(self, family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            listener.close()
            raise StartError(
                f"{self._env.host}:{self._env.port}: {error.strerror}; set another PORT (0: any free one)"
            ) from None
        listener.listen(1024)
        return listener

    async def _bring_up(self) -> None:
        began = time.monotonic()
        assert self._listener is not None
        services = await self._start_engines()
        stack = self._make_stack(self._env, self._listener)
        self._child_env = os.environ | {
            "NOOBLE_HOME": str(self._home),
            "HOST": self._env.host,
            "PORT": str(self._listener.getsockname()[1]),
            "DATABASE_URL": services.database_url,
            "REDIS_URL": services.redis_url,
            "PYTHONUNBUFFERED": "1",
        }
        if stack.migrate:
            owner_env = self._child_env | {"DATABASE_URL": services.database_owner_url}
            await self._run_once("migrate", stack.migrate, owner_env, lambda line: self._say(line, "migrate"))
        for child in stack.children:
            self._children[child] = self._spawn_child(child)
            self._start_keeper(self._keep_child(child))
        demo, _ = await asyncio.gather(self._seed(stack.seed), self._wait_until_healthy(stack.health))
        write_private(self._demo_file(), {"base_url": self._base_url(), **demo})
        self._announce(demo, time.monotonic() - began)

    async def _start_engines(self) -> Services:
        """Those that no URL stands for."""
        env = self._env
        self._engines.launch(need_database=env.database_url is None, need_redis=env.redis_url is None)
        await self._until(self._engines.ready)
        own = self._engines.publish()
        for engine in self._engines.running:
            self._start_keeper(self._keep_engine(engine))
        return Services(
            database_url=env.database_url or own.database_url,
            database_owner_url=env.database_url or own.database_owner_url,
            redis_url=env.redis_url or own.redis_url,
        )

    async def _until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > deadline:
                raise StartError(f"no answer within {START_SECONDS:.0f} s: see {self._home / 'log'}")
            await asyncio.sleep(POLL_SECONDS)

    async def _seed(self, command: Sequence[str]) -> dict[str, Any]:
        """The demo tenant: the command's last line says what it is."""
        if not command:
            return {}
        lines: list[str] = []
        await self._run_once("seed", command, self._child_env, lines.append)
        try:
            demo: dict[str, Any] = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise StartError(f"seed did not say what it made: {lines[-1:]}") from None
        return demo

    async def _wait_until_healthy(self, path: str) -> None:
        patient_until = time.monotonic() + IMPATIENCE_SECONDS
        while path:
            status, body = await self._get(path)
            if status == 200:
                return
            if status:
                await asyncio.sleep(POLL_SECONDS)  # each refusal is a line in the web's log
            if time.monotonic() > patient_until:
                patient_until += IMPATIENCE_SECONDS
                self._say(f"still waiting for {path}: {status or 'no answer'} {body[:1000]}")
            await asyncio.sleep(POLL_SECONDS)

    async def _get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 if there is no answer."""
        assert self._listener is not None
        host, port = self._listener.getsockname()[:2]
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(self._reachable(host), port)
                try:
                    writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n".encode())
                    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                    return int(head.split()[1]), body.decode(errors="replace")
                finally:
                    writer.close()
        except (OSError, ValueError, IndexError):
            return 0, ""

    def _announce(self, demo: dict[str, Any], seconds: float) -> None:
        base_url, admin = self._base_url(), demo.get("admin", {})
        self._say(f"ready in {seconds:.1f} s; Ctrl-C stops")
        self._say(f"chat   {base_url}/chat/{demo.get('agent_id', '')}")
        self._say(f"admin  {base_url}/admin/  ({admin.get('username')} / {admin.get('password')})")
        self._say(f"docs   {base_url}/api/docs")

    def _base_url(self) -> str:
        assert self._listener is not None
        host = self._reachable(self._env.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._listener.getsockname()[1]}"

    @staticmethod
    def _reachable(host: str) -> str:
        """An address that a client can use, where the server's stands for every interface."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)

    def _demo_file(self) -> Path:
        return self._home / "demo.json"

    # --- processes -------------------------------------------------------------------------------

    def _spawn(
        self,
        name: str,
        command: Sequence[str],
        env: dict[str, str],
        take: Callable[[str], None],
        pass_fds: tuple[int, ...] = (),
    ) -> Running:
        """In a session of its own: the terminal's Ctrl-C is for us alone."""
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=die_with_parent(Signals.SIGKILL),
        )
        running = Running(
            name,
            process,
            (Pipe(process.stdout, take), Pipe(process.stderr, lambda line: self._say(line, name))),
        )
        self._spawned.add(running)
        self._record_children()
        self._watched.add(running)
        self._reap()
        return running

    def _spawn_child(self, child: Child) -> Running:
        return self._spawn(
            child.name,
            child.command,
            self._child_env,
            lambda line: self._say(line, child.name),
            child.pass_fds,
        )

    async def _run_once(
        self, name: str, command: Sequence[str], env: dict[str, str], take: Callable[[str], None]
    ) -> None:
        """A command that must succeed before we go on; it ends with us when we are stopped."""
        running = self._spawn(name, command, env, take)
        try:
            await running.ended.wait()
        finally:
            await self._finish(running, patience=5)
        if running.process.returncode != 0:
            raise StartError(f"{name} failed ({running.outcome()})")

    async def _keep_child(self, child: Child) -> None:
        """Starts it again whenever it ends, ever more slowly while it does not stay up."""
        pause = FIRST_PAUSE
        while True:
            since = time.monotonic()
            running = self._children[child]
            await running.ended.wait()
            await self._finish(running, patience=0)
            if time.monotonic() - since >= STEADY_SECONDS:
                pause = FIRST_PAUSE
            self._say(f"ended ({running.outcome()}); starting it again in {pause:g} s", child.name)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            self._children[child] = self._spawn_child(child)

    async def _keep_engine(self, engine: Engine) -> None:
        """The same for an engine, which comes back with its data at the same address."""
        pause = FIRST_PAUSE
        while True:
            since = time.monotonic()
            await self._engine_ended(engine)
            if time.monotonic() - since >= STEADY_SECONDS:
                pause = FIRST_PAUSE
            self._say(f"ended; starting it again in {pause:g} s", engine.name)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                engine.spawn()
                await self._until(engine.ready)
                self._engines.publish()
            except (StartError, EngineError, OSError) as error:
                self._say(str(error), engine.name)

    async def _engine_ended(self, engine: Engine) -> None:
        if engine.process is None or engine.exited():
            return
        running = Running(engine.name, engine.process)
        self._watched.add(running)
        self._reap()
        await running.ended.wait()

    async def _finish(self, running: Running, patience: float) -> None:
        """Ends the process and whatever it started. One SIGTERM, to it alone; after `patience`, SIGKILL."""
        if not running.ended.is_set():
            running.process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(running.ended.wait(), patience)
        if not running.swept:
            # Once only: later the number may be another process group's.
            running.swept = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(running.process.pid, Signals.SIGKILL)
        await running.ended.wait()
        self._spawned.discard(running)
        for pipe in running.pipes:
            while pipe.read():
                pass

    def _reap(self) -> None:
        for running in list(self._watched):
            if running.process.poll() is not None:
                self._watched.discard(running)
                running.ended.set()

    def _start_keeper(self, keeper: Coroutine[Any, Any, None]) -> None:
        self._keepers.add(asyncio.create_task(keeper))

    def _children_file(self) -> Path:
        return self._home / "children.json"

    def _record_children(self) -> None:
        """For the next start, should we be killed where the kernel does not end orphans by itself."""
        pids = [running.process.pid for running in self._spawned]
        write_private(self._children_file(), [{"pid": pid, "started": start_time(pid)} for pid in pids])

    def _end_earlier_children(self) -> None:
        with suppress(FileNotFoundError):
            for child in json.loads(self._children_file().read_text()):
                if child["started"] is None or start_time(child["pid"]) != child["started"]:
                    continue
                with suppress(ProcessLookupError):
                    os.killpg(child["pid"], Signals.SIGKILL)
                while start_time(child["pid"]) == child["started"]:
                    time.sleep(POLL_SECONDS)
            self._children_file().unlink()

    def _say(self, text: str, name: str = "nooble") -> None:
        for line in text.splitlines():
            self._terminal.line(name, line)

    # --- down ------------------------------------------------------------------------------------

    async def _take_down(self) -> None:
        """In order: what takes work in, what does it, what plans it, and then the engines."""
        if not self._engines.claimed:
            await self._terminal.drain()
            return
        self._say("stopping")
        self._demo_file().unlink(missing_ok=True)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for stage in sorted({child.stage for child in self._children}):
            await asyncio.gather(
                *(
                    self._finish(running, child.patience)
                    for child, running in self._children.items()
                    if child.stage == stage
                )
            )
        self._children_file().unlink(missing_ok=True)
        if self._mourner is not None:
            self._mourner.communicate()  # while the home is still ours
        self._engines.stop()
        self._say("stopped")
        await self._terminal.drain()


def main() -> int:
    return asyncio.run(Supervisor(environment()).run())


if __name__ == "__main__":
    sys.exit(main())
