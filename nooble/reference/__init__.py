"""The pages of docs/ that are generated from the code."""

from collections.abc import Callable
from pathlib import Path

from nooble.env import ROOT
from nooble.reference import endpoints, errors, events, settings

PAGES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "endpoints.md": endpoints.render,
    ROOT / "docs" / "errors.md": errors.render,
    ROOT / "docs" / "events.md": events.render,
    ROOT / "docs" / "settings.md": settings.render,
}
