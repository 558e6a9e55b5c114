"""`python -m tests.chaos.launcher <module> <arguments>`: a process of the platform with a fault built in.

The module runs as `python -m <module>` would run it. The environment says what is wrong with it:

CHAOS_CRASH    a point of `points.POINTS` or `NOTICE_POINTS` at which the process kills itself,
CHAOS_PERMITS  a directory: each crash uses up one of its files, and without one nothing happens;
               a file's content says how many times the point is passed before
CHAOS_WITHOUT  a guard of `points.GUARDS` that this process does not have
CHAOS_DEAF     the share of hints that this web process does not hear
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from pathlib import Path

ENTRANCES = {"celery": "celery_app", "daphne": "nooble.asgi"}


def main() -> None:
    module = sys.argv[1]
    sys.argv = [_program(module), *sys.argv[2:]]
    # The settings ask which program this is: everything that is to be altered is imported from here on.
    importlib.import_module(ENTRANCES[module])
    points = importlib.import_module("tests.chaos.points")
    if name := os.environ.get("CHAOS_CRASH"):
        points.crash_at(name, Path(os.environ["CHAOS_PERMITS"]))
    if name := os.environ.get("CHAOS_WITHOUT"):
        points.GUARDS[name]()
    if share := os.environ.get("CHAOS_DEAF"):
        points.be_deaf(float(share))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _program(module: str) -> str:
    spec = importlib.util.find_spec(f"{module}.__main__")
    assert spec is not None and spec.origin is not None
    return spec.origin


if __name__ == "__main__":
    main()
