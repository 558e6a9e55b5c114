"""The supervisor with stand-in children, for `test_run`: `python -m tests.nooble.small_stack '<json>'`.

The argument says what each process runs, as Python source: {"migrate", "seed", "health", "children":
[{"name", "source", "stage", "patience"}]}. The last argument of each is the listening socket's descriptor.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

from nooble.env import Environment
from nooble.run import Child, Stack, Supervisor

PLAN: dict[str, Any] = json.loads(sys.argv[1])


def small_stack(env: Environment, listener: socket.socket) -> Stack:
    descriptor = listener.fileno()

    def python(source: str) -> tuple[str, ...]:
        return (sys.executable, "-c", source, str(descriptor)) if source else ()

    return Stack(
        children=[
            Child(
                child["name"],
                python(child["source"]),
                stage=child.get("stage", 0),
                patience=child.get("patience", 5),
                pass_fds=(descriptor,),
            )
            for child in PLAN["children"]
        ],
        migrate=python(PLAN.get("migrate", "")),
        seed=python(PLAN.get("seed", "")),
        health=PLAN.get("health", ""),
    )


if __name__ == "__main__":
    # Whatever a developer's .env says is not for tests.
    sys.exit(asyncio.run(Supervisor(Environment(_env_file=None), small_stack).run()))
