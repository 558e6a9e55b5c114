"""The environment: what is no value stops the start, and is named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nooble.env import ROOT, environment
from nooble.reference.settings import names

# Of those that not every text is a value of.
BAD = {
    "NOOBLE_ENV": "staging",
    "NOOBLE_DEV_PUBLIC": "perhaps",
    "PORT": "70000",
    "DATABASE_URL": "mysql://host/db",
    "REDIS_URL": "http://host",
    "ORCHESTRATOR_REDIS_URL": "http://host",
    "SECRET_KEY": "short",
    "ENCRYPTION_KEYS": "abc",
    "LOG_LEVEL": "LOUD",
    "SERVICE_TOKEN": "short",
    "TRUSTED_PROXIES": "proxy",
    "ORCHESTRATOR_MAX_WEBSOCKET_CONNECTIONS": "0",
    "ORCHESTRATOR_TASK_TIMEOUT_SECONDS": "soon",
    "ORCHESTRATOR_WORKER_SLEEP_SECONDS": "-1",
    "ORCHESTRATOR_WEBSOCKET_PING_INTERVAL": "0",
    "ORCHESTRATOR_WEBSOCKET_PING_TIMEOUT": "soon",
    "ORCHESTRATOR_WS_URL": "http://host",
    "OPENAI_BASE_URL": "host",
    "GROQ_BASE_URL": "host",
    "NOOBLE_OUTBOUND_ALLOW": "everything",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "host",
}
ANY_TEXT = {"NOOBLE_HOME", "HOST", "ALLOWED_HOSTS", "OPENAI_API_KEY", "GROQ_API_KEY"}


def test_a_bad_value_stops_the_start_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in BAD.items():
        with monkeypatch.context() as patch:
            patch.delenv("REDIS_URL", raising=False)
            patch.setenv("NOOBLE_ENV", "test")
            patch.setenv(name, value)
            with pytest.raises(SystemExit):
                environment.__wrapped__()
        told = capsys.readouterr().err
        assert name in told
        assert told.count("\n") == 1, told


def test_there_is_a_bad_value_for_each() -> None:
    assert set(names()) | {"ORCHESTRATOR_REDIS_URL"} == BAD.keys() | ANY_TEXT


@pytest.mark.parametrize("name", ["SECRET_KEY", "ENCRYPTION_KEYS"])
def test_outside_dev_keys_are_the_operators(name: str) -> None:
    """What signs and encrypts is never made up, nor empty."""
    variables = {key: value for key, value in os.environ.items() if key != name}
    command = (sys.executable, "-c", "import nooble.settings.security")
    refused = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode
    assert f"bad environment: {name}: required outside dev" in refused.stderr
