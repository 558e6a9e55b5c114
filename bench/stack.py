"""The platform and the fake model, started as an operator starts them."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.processes import Process

FIRST_TOKEN = 0.05  # seconds
INTERVAL = 0.01  # seconds
TOKENS = 50

START_SECONDS = 180.0

# The measured platform is `make run` with its own engines, whatever this shell is set up for.
_UNWANTED = (
    "ALLOWED_HOSTS",
    "DATABASE_URL",
    "GROQ_API_KEY",
    "GROQ_BASE_URL",
    "HOST",
    "NOOBLE_DEV_PUBLIC",
    "ORCHESTRATOR_REDIS_URL",
    "ORCHESTRATOR_WS_URL",
    "REDIS_URL",
)


def clean_environment(home: Path) -> dict[str, str]:
    """For processes that work with this NOOBLE_HOME."""
    environment = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
    return environment | {"NOOBLE_ENV": "dev", "NOOBLE_HOME": str(home)}


@dataclass(frozen=True)
class Stack:
    """What runs, and what it says of itself."""

    model: Process
    platform: Process
    model_url: str
    demo: dict[str, Any]


def start(stack: ExitStack, home: Path) -> Stack:
    """The model and the platform, both ready; the exit stack stops them. Raises ProcessFailed."""
    environment = clean_environment(home)
    schedule = ("--first-token", str(FIRST_TOKEN), "--interval", str(INTERVAL), "--tokens", str(TOKENS))
    ready_file = home / "fake-model.json"
    model = Process(
        (sys.executable, "-m", "bench.fake_model", *schedule, "--ready-file", str(ready_file)),
        environment,
        home / "fake-model.log",
    )
    stack.callback(model.stop)
    model_url: str = model.wait_for(ready_file, START_SECONDS)["base_url"]
    environment |= {"PORT": "0", "OPENAI_BASE_URL": model_url, "OPENAI_API_KEY": "fake"}
    platform = Process((sys.executable, "-m", "nooble.run"), environment, home / "run.log")
    stack.callback(platform.stop)
    return Stack(model, platform, model_url, platform.wait_for(home / "demo.json", START_SECONDS))
