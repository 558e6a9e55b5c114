"""A web process, a worker, a model and a collector, as in production: what they print, count and record."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGKILL
from typing import Any
from urllib.parse import urlsplit

import requests
from django.db import connection

from bench.processes import Process
from core.models import Task
from core.models.task import FINAL
from core.tenancy import across_tenants
from nooble.embedded import die_with_parent
from nooble.env import ROOT
from tests.acceptance.stack import clean_environment, http_session
from tests.core.broker.server import eventually
from tests.workers import Worker

START_SECONDS = 60.0
OPERATORS_KEY = f"sk-operator-{uuid.uuid4().hex}"
SERVICE_TOKEN = f"service-{uuid.uuid4().hex}"
# What a proxy with TLS says to us.
HEADERS = {"X-Forwarded-Proto": "https"}


class Listener:
    """An HTTP server of the test's own. `heard` holds (path, headers, body) of what was posted to it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Callable[[dict[str, str], bytes], tuple[int, bytes]] = lambda headers, body: (200, b"{}")
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                listener.heard.append((self.path, headers, body))
                status, answer = listener.answer(headers, body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def do_GET(self) -> None:
                self.send_error(404)

            def log_message(self, *_: Any) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Platform:
    """The processes, on the test's database and the session's Valkey."""

    def __init__(self, cleanup: ExitStack, home: Path) -> None:
        self.home = home
        self.http = cleanup.enter_context(http_session())
        self.http.headers.update(HEADERS)
        self.collector = Listener()
        cleanup.callback(self.collector.close)
        ready = home / "model.json"
        command = (sys.executable, "-m", "bench.fake_model", "--port", "0", "--ready-file", str(ready))
        model = Process(
            (*command, "--first-token", "0", "--tokens", "5"), clean_environment(), home / "model.log"
        )
        cleanup.callback(model.stop)
        self.model_url: str = model.wait_for(ready, START_SECONDS)["base_url"]
        self.environment = {
            "NOOBLE_ENV": "prod",
            "ALLOWED_HOSTS": "127.0.0.1",
            "SERVICE_TOKEN": SERVICE_TOKEN,
            "OPENAI_API_KEY": OPERATORS_KEY,
            "OPENAI_BASE_URL": self.model_url,
            "NOOBLE_OUTBOUND_ALLOW": "127.0.0.1/32",
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds
            "LOG_LEVEL": "INFO",
        }
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        cleanup.callback(listener.close)
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._cleanup = cleanup
        self._workers: list[Worker] = []
        self._web = self._start_web(listener)
        cleanup.callback(self._end, self._web)
        self.worker = self.start_worker()
        eventually(self._answers, START_SECONDS)

    def _start_web(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        """As a person starts it: Daphne would write an access log of its own."""
        url = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{connection.settings_dict['NAME']}")
        words = ["-m", "daphne", "--fd", str(listener.fileno()), "nooble.asgi:application"]
        with (self.home / "web.log").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=os.environ | self.environment | {"DATABASE_URL": url.geturl()},
                stdout=output,
                stderr=output,
                pass_fds=(listener.fileno(),),
                preexec_fn=die_with_parent(SIGKILL),
            )

    def start_worker(self) -> Worker:
        log = self.home / f"worker-{len(self._workers)}.log"
        worker = Worker(log, domains="agent,orchestrator", **self.environment)
        self._workers.append(worker)
        self._cleanup.callback(worker.kill)
        worker.ready()
        return worker

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(10)

    def _answers(self) -> bool:
        assert self._web.poll() is None, (self.home / "web.log").read_text()
        try:
            return self.http.get(f"{self.base_url}/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    # --- What it does ------------------------------------------------------------------------------

    def request(self, method: str, path: str, key: str | None = None, **options: Any) -> requests.Response:
        headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        return self.http.request(method, f"{self.base_url}{path}", headers=headers, timeout=30, **options)

    def ask(self, agent_id: object, message: str = "Hello", *, trace: str = "", request_id: str = "") -> Task:
        """The task of a message, when it and its callback have ended."""
        body = {"agent_id": str(agent_id), "message": message}
        given = {"traceparent": trace, "X-Request-ID": request_id}
        headers = {name: value for name, value in given.items() if value}
        answer = self.request("POST", "/api/v1/chat/message", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        return self.ended(uuid.UUID(answer.json()["result"]["task_id"]))

    def ended(self, task_id: uuid.UUID) -> Task:
        with across_tenants():
            family = Task.unscoped.filter(global_task_id=task_id)

            def all_ended() -> bool:
                statuses = list(family.values_list("status", flat=True))
                return len(statuses) > 1 and all(status in FINAL for status in statuses)

            eventually(all_ended)
            task: Task = Task.unscoped.get(pk=task_id)
        return task

    # --- What can be seen of it --------------------------------------------------------------------

    def printed(self) -> list[str]:
        """Every line that web and workers have printed, without its end."""
        logs = [path for path in self.home.glob("*.log") if path.name != "model.log"]
        return [line for path in logs for line in path.read_bytes().decode().split("\n") if line]

    def lines(self, event: str) -> Iterator[dict[str, Any]]:
        """The log's lines of this event."""
        for line in self.printed():
            fields = json.loads(line)
            if fields["event"] == event:
                yield fields

    def metrics(self, key: str = SERVICE_TOKEN) -> str:
        answer = self.request("GET", "/metrics", key=key)
        assert answer.status_code == 200, answer.text
        return answer.text
