"""The supervisor as a process of its own, with small stand-in children."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from nooble.embedded import discard, resolve, services_file, start_time
from nooble.env import ROOT, Environment
from tests.engines import HOMES, PREFIX

ELSEWHERE = {"DATABASE_URL": "postgresql://user@elsewhere/nooble", "REDIS_URL": "redis://elsewhere/0"}

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"

# Serves the supervisor's socket, as Daphne does; says which process it is.
WEB = """
import http.server, os, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.serve_forever()
"""

# Counts the signals that it gets before it goes.
POLITE = """
import os, signal, sys, time
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append("TERM"))
signal.signal(signal.SIGINT, lambda *_: got.append("INT"))
print("up", flush=True)
while not got: time.sleep(0.01)
time.sleep(0.5)
print("leaving after", *got, flush=True)
"""

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""

SEED = """
print("a line of something else")
print('{"tenant_id": "demo", "agent_id": "a-1", "api_key": "k", "admin": {"username": "u", "password": "p"}}')
"""


class Stack:
    """A running supervisor and what it has printed so far; without `engines`, it believes to have some."""

    def __init__(self, home: Path, *, engines: bool = False, real: bool = False, **plan: Any) -> None:
        self.home = home
        self._read = bytearray()
        # What would change the stack's behaviour; the session's own services above all.
        unwanted = ("DATABASE_URL", "REDIS_URL", "ORCHESTRATOR_REDIS_URL", "NOOBLE_ENV", "HOST")
        env = {name: value for name, value in os.environ.items() if name not in unwanted}
        env |= {"NOOBLE_HOME": str(home), "PORT": "0"} | ({} if engines else ELSEWHERE) | plan.pop("env", {})
        small = ["tests.nooble.small_stack", json.dumps({"children": [], **plan})]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *(["nooble.run"] if real else small)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def read_until(self, pattern: str, seconds: float = 20) -> re.Match[str]:
        """Waits for output that matches, and keeps it."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        deadline = time.monotonic() + seconds
        while True:
            self._read += self.process.stdout.read() or b""
            if match := re.search(pattern, self._read.decode()):
                return match
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self._read.decode()}"
            time.sleep(0.02)

    def stop(self, *signals: signal.Signals) -> tuple[int, str]:
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
        code = self.process.wait(30)
        self.read_until("")
        return code, self._read.decode()

    def children(self) -> list[int]:
        return [child["pid"] for child in json.loads((self.home / "children.json").read_text())]

    def engines(self) -> dict[str, int]:
        record = json.loads(services_file(self.home).read_text())
        return {name: engine["pid"] for name, engine in record["engines"].items()}

    def get(self) -> int:
        """Asks the web child for its pid."""
        port = json.loads((self.home / "demo.json").read_text())["base_url"].rpartition(":")[2]
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
        try:
            connection.request("GET", "/")
            return int(connection.getresponse().read())
        finally:
            connection.close()


@pytest.fixture
def home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=HOMES))
    yield directory
    discard(directory)


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Stack]]:
    stacks: list[Stack] = []

    def start(**plan: Any) -> Stack:
        stacks.append(Stack(home, **plan))
        return stacks[-1]

    yield start
    for stack in stacks:
        if stack.process.poll() is None:
            stack.process.terminate()
        stack.process.wait(40)
        assert stack.process.stdout is not None
        stack.process.stdout.close()


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    return start_time(pid) is None


def dev(home: Path) -> Environment:
    return Environment.model_construct(nooble_home=home)


def sockets(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_socket()]


def test_a_whole_life(home: Path, start: Callable[..., Stack]) -> None:
    stack = start(
        engines=True,
        migrate="import os; print('as', os.environ['DATABASE_URL'].split('/')[2].split(':')[0])",
        seed=SEED,
        health="/health/detailed",
        children=[
            {"name": "beat", "source": POLITE, "stage": 2},
            {"name": "web", "source": WEB},
            {"name": "worker", "source": POLITE, "stage": 1},
        ],
    )
    stack.read_until("docs ")
    demo = home / "demo.json"
    assert stat.S_IMODE(demo.stat().st_mode) == 0o600
    facts = json.loads(demo.read_text())
    assert facts == {
        "base_url": facts["base_url"],
        "tenant_id": "demo",
        "agent_id": "a-1",
        "api_key": "k",
        "admin": {"username": "u", "password": "p"},
    }
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", facts["base_url"])
    processes = [pid for pid in (*stack.children(), *stack.engines().values()) if not is_gone(pid)]
    assert len(processes) == 5
    assert resolve(dev(home)).database_url.startswith("postgresql://nooble_app:")

    code, output = stack.stop()
    assert code == 0
    assert "migrate | as nooble_owner" in output
    assert f"chat   {facts['base_url']}/chat/a-1" in output
    assert "(u / p)" in output
    assert output.index("worker  | leaving") < output.index("beat    | leaving")
    assert all(map(is_gone, processes))
    assert not sockets(home)
    assert not demo.exists()
    assert not services_file(home).exists()


def test_signals_reach_a_child_once_however_many_we_get(start: Callable[..., Stack]) -> None:
    stack = start(children=[{"name": "polite", "source": POLITE}])
    stack.read_until("ready in(.|\n)*up|up(.|\n)*ready in")
    code, output = stack.stop(signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    assert code == 0
    assert "leaving after TERM\n" in output


def test_a_stubborn_child_is_killed_after_its_patience(start: Callable[..., Stack]) -> None:
    stack = start(children=[{"name": "stubborn", "source": STUBBORN, "patience": 0.5}])
    stack.read_until(r"stubborn\| up")
    (child,) = stack.children()
    began = time.monotonic()
    assert stack.stop()[0] == 0
    assert 0.5 <= time.monotonic() - began < 5
    assert is_gone(child)


def test_a_child_that_ends_is_started_again_ever_more_slowly(start: Callable[..., Stack]) -> None:
    stack = start(children=[{"name": "flapping", "source": "raise SystemExit(3)"}])
    stack.read_until(
        r"exit code 3\); starting it again in 0.5 s(.|\n)*"
        r"exit code 3\); starting it again in 1 s(.|\n)*exit code 3\); starting it again in 2 s"
    )


def test_what_a_killed_child_started_goes_with_it(home: Path, start: Callable[..., Stack]) -> None:
    spawn = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]).pid)"
    stack = start(children=[{"name": "parent", "source": f"{spawn}; import time; time.sleep(600)"}])
    grandchild = int(stack.read_until(r"parent  \| (\d+)")[1])
    os.kill(stack.children()[0], signal.SIGKILL)
    stack.read_until("signal SIGKILL")
    wait_until(lambda: is_gone(grandchild))


def test_callers_wait_while_the_web_restarts(start: Callable[..., Stack]) -> None:
    stack = start(seed=SEED, health="/", children=[{"name": "web", "source": WEB}])
    stack.read_until("docs ")
    before = stack.get()
    os.kill(before, signal.SIGKILL)
    assert stack.get() != before


@pytest.mark.parametrize("engine", ["valkey", "postgres"])
def test_a_killed_engine_is_back_with_its_data(home: Path, start: Callable[..., Stack], engine: str) -> None:
    stack = start(engines=True)
    stack.read_until("ready in")
    services = resolve(dev(home))
    with psycopg.connect(services.database_owner_url) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('here')")
    client = redis.from_url(services.redis_url)
    client.set("kept", "here")
    client.execute_command("WAITAOF", 1, 0, 2000)
    before = stack.engines()

    os.kill(before[engine], signal.SIGKILL)
    wait_until(lambda: stack.engines()[engine] != before[engine])
    assert resolve(dev(home)) == services
    with psycopg.connect(services.database_url) as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("here",)
    assert redis.from_url(services.redis_url).get("kept") == b"here"
    client.close()


def test_kill_of_the_supervisor_is_cleaned_up(home: Path, start: Callable[..., Stack]) -> None:
    stack = start(engines=True, children=[{"name": "stubborn", "source": STUBBORN}])
    stack.read_until("ready in(.|\n)*up|up(.|\n)*ready in")
    processes = [*stack.children(), *stack.engines().values()]
    stack.process.kill()
    wait_until(lambda: not (home / "demo.json").exists() and not services_file(home).exists())
    if sys.platform == "linux":
        wait_until(lambda: all(map(is_gone, processes)))
        with pytest.raises(SystemExit, match="no services"):
            resolve(dev(home))
    again = start(engines=True)
    again.read_until("ready in")
    assert all(map(is_gone, processes))


def test_an_earlier_child_is_ended_but_not_a_process_that_has_its_number(
    home: Path, start: Callable[..., Stack]
) -> None:
    left, innocent = (
        subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True) for _ in range(2)
    )
    record = [{"pid": left.pid, "started": start_time(left.pid)}, {"pid": innocent.pid, "started": "earlier"}]
    (home / "children.json").write_text(json.dumps(record))
    try:
        start().read_until("ready in")
        assert left.wait(5) == -signal.SIGKILL
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_two_on_one_home_refuse_each_other(start: Callable[..., Stack]) -> None:
    first = start(engines=True, seed=SEED, health="/", children=[{"name": "web", "source": WEB}])
    first.read_until("docs ")
    second = start()
    assert second.process.wait(20) == 1
    second.read_until(rf"cannot start: .* is in use by process {first.process.pid}: .* another NOOBLE_HOME")
    assert first.get()
    assert resolve(dev(first.home))


def test_two_side_by_side(home: Path, start: Callable[..., Stack]) -> None:
    stacks = [
        start(
            engines=True,
            seed=SEED,
            health="/",
            children=[{"name": "web", "source": WEB}],
            env={"NOOBLE_HOME": str(home / name)},
        )
        for name in ("one", "two")
    ]
    for stack in stacks:
        stack.read_until("docs ")
    stacks[0].stop()
    assert resolve(dev(home / "two"))
    stacks[1].stop()
    for name in ("one", "two"):
        discard(home / name)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_dev_refuses_other_machines(home: Path, start: Callable[..., Stack], host: str) -> None:
    refused = start(env={"HOST": host})
    assert refused.process.wait(20) == 1
    refused.read_until("cannot start: HOST=.* NOOBLE_DEV_PUBLIC=1")
    start(env={"HOST": host, "NOOBLE_DEV_PUBLIC": "1"}).read_until("ready in")


@pytest.mark.parametrize("environment", ["prod", "test"])
def test_only_for_development(start: Callable[..., Stack], environment: str) -> None:
    refused = start(env={"NOOBLE_ENV": environment})
    assert refused.process.wait(20) == 1
    refused.read_until("cannot start: .*NOOBLE_ENV")


def test_a_taken_port_is_named(home: Path, start: Callable[..., Stack]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = start(env={"PORT": str(port)})
        assert refused.process.wait(20) == 1
    refused.read_until(f"cannot start: 127.0.0.1:{port}: .* another PORT")


@pytest.mark.parametrize("command", ["migrate", "seed"])
def test_a_failed_command_takes_everything_down(
    home: Path, start: Callable[..., Stack], command: str
) -> None:
    stack = start(
        engines=True,
        children=[{"name": "sleeper", "source": SLEEPER}],
        **{command: "import sys; sys.exit('it went wrong')"},
    )
    assert stack.process.wait(20) == 1
    stack.read_until(rf"{command} *\| it went wrong(.|\n)*cannot start: {command} failed \(exit code 1\)")
    assert not sockets(home)
    assert not (home / "demo.json").exists()


def test_a_stop_during_the_start(home: Path, start: Callable[..., Stack]) -> None:
    stack = start(engines=True, migrate=SLEEPER)
    stack.read_until(r"migrate \| up")
    processes = [*stack.children(), *stack.engines().values()]
    assert stack.stop()[0] == 0
    assert all(map(is_gone, processes))


def test_a_reader_that_does_not_read_holds_nothing_up(start: Callable[..., Stack]) -> None:
    chatty = "while True: print('x' * 1000, flush=True)"
    stack = start(
        seed=SEED,
        health="/",
        children=[{"name": "web", "source": WEB}, {"name": "chatty", "source": chatty, "stage": 1}],
    )
    wait_until((stack.home / "demo.json").exists, 20)
    time.sleep(2)
    assert stack.get()
    assert stack.stop()[0] == 0


def test_a_reader_that_has_gone_holds_nothing_up(start: Callable[..., Stack]) -> None:
    stack = start(seed=SEED, health="/", children=[{"name": "web", "source": WEB}])
    assert stack.process.stdout is not None
    stack.process.stdout.close()
    wait_until((stack.home / "demo.json").exists, 20)
    assert stack.get()
    stack.process.terminate()
    assert stack.process.wait(20) == 0


def test_given_services_are_used_and_not_started(home: Path, start: Callable[..., Stack]) -> None:
    show = "import os, time; print(os.environ['DATABASE_URL'], os.environ['REDIS_URL']); time.sleep(600)"
    stack = start(children=[{"name": "show", "source": show}])
    stack.read_until("postgresql://user@elsewhere/nooble redis://elsewhere/0")
    assert stack.engines() == {}


@pytest.mark.skipif((ROOT / ".env").exists(), reason="would use the services that .env names")
def test_the_platform_itself(home: Path, start: Callable[..., Stack]) -> None:
    stack = start(engines=True, real=True)
    wait_until((home / "demo.json").exists, 90)
    demo = json.loads((home / "demo.json").read_text())
    with urllib.request.urlopen(f"{demo['base_url']}/health/detailed", timeout=10) as answer:
        assert answer.status == 200
    processes = [*stack.children(), *stack.engines().values()]
    assert stack.stop()[0] == 0
    assert all(map(is_gone, processes))
    assert not sockets(home)

    again = start(engines=True, real=True)
    wait_until((home / "demo.json").exists, 90)
    kept = json.loads((home / "demo.json").read_text())
    assert {**kept, "base_url": ""} == {**demo, "base_url": ""}
    assert again.stop()[0] == 0
