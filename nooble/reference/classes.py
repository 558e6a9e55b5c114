"""The classes that our own packages derive from one of ours."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from nooble.env import ROOT

C = TypeVar("C")


def own_subclasses(base: type[C]) -> list[type[C]]:
    """All of them, at any depth, floor by floor as they are written; none that a test made."""
    autodiscover_modules("errors", "events")
    packages = [app.name for app in apps.get_app_configs() if Path(app.path).parent == ROOT]
    found = {child for child in _below(base) if child.__module__.partition(".")[0] in packages}

    def place(child: type[C]) -> tuple[int, str, int]:
        floor = packages.index(child.__module__.partition(".")[0])
        return floor, child.__module__, inspect.getsourcelines(child)[1]

    return sorted(found, key=place)


def _below(base: type[C]) -> Iterator[type[C]]:
    for child in base.__subclasses__():
        yield child
        yield from _below(child)
