"""How much of everything: the short set of `make test`, or the full one of `make chaos`."""

from __future__ import annotations

import os

FULL = os.environ.get("CHAOS") == "full"


def sized(short: int, full: int) -> int:
    return full if FULL else short


def bar(holds: bool, words: str) -> None:
    """A bar of time: a figure in the short set, which shares its machine, and a must in the full one."""
    assert holds or not FULL, words
