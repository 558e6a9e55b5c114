"""The classes that our own packages derive from one of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from nooble.env import ROOT

C = TypeVar("C", bound=type)


def own_subclasses(base: C) -> list[C]:
    """All of them, at any depth, in the order of their definition; none that a test made."""
    autodiscover_modules("errors", "events")
    packages = {app.name for app in apps.get_app_configs() if Path(app.path).parent == ROOT}
    found: list[C] = []
    for child in base.__subclasses__():
        if child.__module__.partition(".")[0] in packages:
            found += [child, *(grandchild for grandchild in own_subclasses(child) if grandchild not in found)]
    return found
