"""The engines with real processes: who may do what, what is kept, and what a crash leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from cryptography.fernet import Fernet

from nooble.embedded import (
    MAX_SOCKET_PATH,
    NO_SERVICES,
    ROOT_DATA,
    EngineError,
    Engines,
    Services,
    discard,
    resolve,
    secrets,
    services_file,
    start_time,
)
from nooble.env import ROOT, Environment
from tests.engines import HOMES, PREFIX

AS_ROOT = os.geteuid() == 0

# Owns the engines until it is killed; with an argument, the kernel does not end them with it.
OWNER = """
import sys, time
from pathlib import Path
from nooble import embedded
if sys.argv[2:]:
    embedded.die_with_parent = lambda number: None
embedded.Engines().start(Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=HOMES))
    yield directory
    discard(directory)


@pytest.fixture
def engines() -> Iterator[Engines]:
    started = Engines()
    yield started
    started.stop()


def dev(home: Path, **values: Any) -> Environment:
    """An environment as a process without URLs has it, whatever this session's variables say."""
    return Environment.model_construct(nooble_home=home, **values)


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def pids(home: Path) -> dict[str, int]:
    return {
        name: engine["pid"] for name, engine in json.loads(services_file(home).read_text())["engines"].items()
    }


def is_gone(pid: int) -> bool:
    return start_time(pid) is None


def write_something(url: str, redis_url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('here')")
    client = redis.from_url(redis_url)
    client.set("kept", "here")
    client.execute_command("WAITAOF", 1, 0, 2000)


def assert_still_there(url: str, redis_url: str) -> None:
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("here",)
    assert redis.from_url(redis_url).get("kept") == b"here"


def test_recorded_for_others_to_attach_and_gone_after_stop(home: Path, engines: Engines) -> None:
    services = engines.start(home)
    assert resolve(dev(home)) == services
    assert mode(home) == 0o700
    assert mode(services_file(home)) == 0o600
    sockets = [engine.sockets for engine in engines.running]
    assert {mode(directory) for directory in sockets} == {0o700}
    running = pids(home)
    assert set(running) == {"valkey", "postgres"}

    engines.stop()
    assert all(map(is_gone, running.values()))
    assert not services_file(home).exists()
    assert not any(directory.exists() for directory in sockets)


def test_data_survives_a_stop(home: Path, engines: Engines) -> None:
    services = engines.start(home)
    write_something(services.database_owner_url, services.redis_url)
    engines.stop()
    again = engines.start(home)
    assert again == services
    assert_still_there(again.database_owner_url, again.redis_url)


def test_roles(home: Path, engines: Engines) -> None:
    services = engines.start(home, need_redis=False)
    assert services.redis_url == ""
    with psycopg.connect(services.database_owner_url, autocommit=True) as owner:
        rows = owner.execute(
            "SELECT rolname, rolsuper, rolbypassrls, rolcreatedb FROM pg_roles"
            " WHERE rolname LIKE 'nooble%' ORDER BY rolname"
        ).fetchall()
        assert rows == [("nooble_app", False, False, False), ("nooble_owner", False, False, True)]
        assert owner.execute("SHOW fsync").fetchone() == ("on",)
        owner.execute("CREATE TABLE notes (id serial PRIMARY KEY, embedding vector(3))")
        # What the test databases of pytest-django are made like.
        owner.execute("CREATE DATABASE another")
    with psycopg.connect(services.database_url) as app:
        assert app.execute("INSERT INTO notes (embedding) VALUES ('[1,2,3]') RETURNING id").fetchone() == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("CREATE TABLE mine (id int)")
    another = services.database_owner_url.replace("/nooble?", "/another?")
    with psycopg.connect(another) as owner:
        owner.execute("CREATE TABLE notes (id serial PRIMARY KEY, embedding vector(3))")
        owner.execute("SET ROLE nooble_app")
        owner.execute("INSERT INTO notes (embedding) VALUES ('[1,2,3]')")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(services.database_url.replace("nooble_app:", "postgres:"))


@pytest.mark.skipif(not AS_ROOT, reason="only root drops to a service user")
def test_root_runs_postgresql_as_nobody_outside_of_its_home(home: Path, engines: Engines) -> None:
    engines.start(home, need_redis=False)
    base = ROOT_DATA / json.loads((home / "id.json").read_text())["id"]
    assert mode(base) == 0o700
    assert base.owner() == "nobody"
    assert Path(f"/proc/{pids(home)['postgres']}").owner() == "nobody"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends orphans by itself")
def test_kill_of_the_owner_ends_the_engines_and_keeps_the_data(home: Path, engines: Engines) -> None:
    services = kill_owner_after_writing(home)
    assert_still_there_after_start(home, engines, services.database_owner_url)


def test_engines_that_outlive_their_owner_are_ended_at_the_next_start(home: Path, engines: Engines) -> None:
    services = kill_owner_after_writing(home, "outlived")
    before = pids(home)
    assert not any(map(is_gone, before.values()))
    assert_still_there_after_start(home, engines, services.database_owner_url)
    assert all(map(is_gone, before.values()))


def kill_owner_after_writing(home: Path, *outlived: str) -> Services:
    command = [sys.executable, "-c", OWNER, str(home), *outlived]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        services = resolve(dev(home))
        write_something(services.database_owner_url, services.redis_url)
        owner.kill()
    if not outlived:
        wait_until(lambda: all(map(is_gone, pids(home).values())))
        with pytest.raises(SystemExit, match="no services"):
            resolve(dev(home))
    return services


def assert_still_there_after_start(home: Path, engines: Engines, url: str) -> None:
    services = engines.start(home)
    assert services.database_owner_url == url
    assert_still_there(url, services.redis_url)


def test_a_pid_in_postmaster_pid_that_another_program_got_since(home: Path, engines: Engines) -> None:
    engines.start(home, need_redis=False)
    data = engines.running[0].base / "data"
    os.kill(pids(home)["postgres"], signal.SIGKILL)
    wait_until(lambda: is_gone(pids(home)["postgres"]))
    lock = data / "postmaster.pid"
    lock.write_text("\n".join([str(os.getpid()), *lock.read_text().splitlines()[1:]]))
    engines.stop()
    engines.start(home, need_redis=False)


def test_one_owner_at_a_time(home: Path, engines: Engines) -> None:
    engines.claim(home)
    with pytest.raises(EngineError, match=rf"in use by process {os.getpid()}"):
        Engines().claim(home)
    engines.stop()
    engines.claim(home)


def test_sockets_of_a_long_home_get_a_short_directory(home: Path, engines: Engines) -> None:
    long = home / ("long" * 30) / "home"
    services = engines.start(long)
    assert redis.from_url(services.redis_url).ping()
    valkey = engines.running[0]
    assert len(os.fsencode(valkey.sockets)) < MAX_SOCKET_PATH
    assert mode(valkey.sockets) == 0o700
    with psycopg.connect(services.database_url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    engines.stop()
    assert not valkey.sockets.exists()
    discard(long)


def test_a_directory_that_is_open_to_others_is_refused_and_left_alone(home: Path, engines: Engines) -> None:
    home.chmod(0o777)
    with pytest.raises(EngineError, match="open to other users"):
        engines.start(home)
    assert mode(home) == 0o777
    home.chmod(0o755)
    engines.claim(home)
    assert mode(home) == 0o755


def test_a_planted_socket_directory_is_refused(home: Path, engines: Engines) -> None:
    (home / "valkey").mkdir(mode=0o700)
    (home / "valkey" / "run").symlink_to("/tmp")
    with pytest.raises(EngineError, match="not a directory"):
        engines.start(home, need_database=False)


def test_a_moved_home_keeps_its_data_and_a_copy_is_another_platform(home: Path, engines: Engines) -> None:
    first, moved, copied = home / "first", home / "moved", home / "copied"
    services = engines.start(first)
    write_something(services.database_owner_url, services.redis_url)
    shutil.copytree(first, copied, ignore=shutil.ignore_patterns("run"))
    with pytest.raises(SystemExit, match="no services"):
        resolve(dev(copied))
    beside = Engines()
    try:
        beside.start(copied, need_redis=False)
        assert_still_there(services.database_owner_url, services.redis_url)
    finally:
        beside.stop()
    engines.stop()
    first.rename(moved)
    services = engines.start(moved)
    assert_still_there(services.database_owner_url, services.redis_url)
    engines.stop()
    discard(moved)
    discard(copied)


def test_no_services(home: Path, engines: Engines) -> None:
    def refusal(env: Environment) -> str:
        with pytest.raises(SystemExit) as stopped:
            resolve(env)
        return str(stopped.value)

    assert NO_SERVICES == "no services: start `make run` or set DATABASE_URL and REDIS_URL"
    assert refusal(dev(home)) == NO_SERVICES
    assert refusal(dev(home / "nowhere")) == NO_SERVICES
    services_file(home).write_text("{")
    assert refusal(dev(home)) == NO_SERVICES

    services = engines.start(home, need_database=False)
    assert refusal(dev(home)) == NO_SERVICES
    record = json.loads(services_file(home).read_text())
    record["engines"]["valkey"]["started"] = "another time"
    with_database = dev(home, database_url="postgresql://user@elsewhere/nooble")
    attached = resolve(with_database)
    assert attached.redis_url == services.redis_url
    assert attached.database_url == attached.database_owner_url == "postgresql://user@elsewhere/nooble"
    services_file(home).write_text(json.dumps(record))
    assert refusal(with_database) == NO_SERVICES


def test_both_urls_need_no_home(tmp_path: Path) -> None:
    env = dev(
        tmp_path / "none", database_url="postgresql://user@elsewhere/nooble", redis_url="redis://elsewhere/0"
    )
    services = resolve(env)
    assert services.database_url == services.database_owner_url == env.database_url
    assert services.redis_url == env.redis_url
    assert not (tmp_path / "none").exists()


def test_secrets_are_made_once_though_many_processes_ask(home: Path) -> None:
    fresh = home / "fresh"
    source = (
        "import sys; from pathlib import *; from nooble.embedded import *; print(secrets(Path(sys.argv[1])))"
    )
    asking = [
        subprocess.Popen([sys.executable, "-c", source, str(fresh)], cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    answers = {process.communicate()[0] for process in asking}
    assert len(answers) == 1
    made = secrets(fresh)
    assert answers == {f"{made}\n".encode()}
    Fernet(made["ENCRYPTION_KEYS"])
    assert len(made["SECRET_KEY"]) >= 50
    assert len(made["SERVICE_TOKEN"]) >= 16
    assert mode(fresh) == 0o700
    assert mode(fresh / "secrets.json") == 0o600
    assert [entry.name for entry in fresh.iterdir()] == ["secrets.json"]
