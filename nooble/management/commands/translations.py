"""The Spanish catalogue, without gettext's tools: Babel (requirements-dev.txt) does their work."""

from __future__ import annotations

import io
from collections.abc import Iterator
from gettext import translation
from pathlib import Path
from typing import Any

import django
import unfold
from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils.translation.template import templatize

LANGUAGE = "es"
PO = Path("nooble/locale/es/LC_MESSAGES/django.po")
PACKAGES = (
    "nooble",
    "orchestrator",
    "workflows",
    "execution",
    "conversations",
    "agents",
    "tools",
    "knowledge",
    "core",
)
# What marks a text, in Babel's notation, in Python files and templates alike.
KEYWORDS: dict[str, Any] = {
    "_": None,
    "gettext": None,
    "gettext_lazy": None,
    "ngettext": (1, 2),
    "ngettext_lazy": (1, 2),
    "pgettext": ((1, "c"), 2),
    "pgettext_lazy": ((1, "c"), 2),
}
# Parts of unfold that we do not use.
UNUSED = ("contrib/import_export", "contrib/simple_history", "contrib/guardian", "contrib/forms")

Found = tuple[str, Any, str | None]


class Command(BaseCommand):
    help = "Bring the Spanish catalogue up to date and compile it; names what still lacks a translation."

    def handle(self, *args: Any, **options: Any) -> None:
        path = Path(settings.BASE_DIR) / PO
        with path.open("rb") as file:
            catalogue = read_po(file, locale=LANGUAGE)
        created = catalogue.creation_date  # kept, else every run would change the file
        catalogue.update(template(), no_fuzzy_matching=True)
        catalogue.obsolete.clear()
        catalogue.creation_date = catalogue.revision_date = created
        with path.open("wb") as file:
            write_po(file, catalogue, width=110, sort_output=True, include_lineno=False)
        path.with_suffix(".mo").write_bytes(compiled(path))
        for message in missing(path):
            self.stdout.write(f"no translation: {message!r}")


def template() -> Catalog:
    """Every text of ours, and those of unfold, which brings no Spanish, that Django does not know."""
    catalogue = Catalog()
    for place, message, context in ours():
        catalogue.add(message, locations=[(place, 0)], context=context)
    known = [
        translation("django", Path(django.__file__).parent / place / "locale", [LANGUAGE])
        for place in ("conf", "contrib/admin", "contrib/auth")
    ]
    for place, message, context in _texts(Path(unfold.__file__).parent, "unfold"):
        if isinstance(message, tuple) or any(part in place for part in UNUSED):
            continue
        if message not in catalogue and all(words.gettext(message) == message for words in known):
            catalogue.add(message, locations=[(place, 0)], context=context)
    return catalogue


def ours() -> Iterator[Found]:
    for package in PACKAGES:
        yield from _texts(Path(settings.BASE_DIR) / package, package)


def _texts(root: Path, name: str) -> Iterator[Found]:
    """(file, message or (singular, plural), context) of every marked text below `root`."""
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.html")]):
        place = f"{name}/{path.relative_to(root).as_posix()}"
        source = path.read_text()
        if path.suffix == ".html":
            # It blanks what is no text; what remains of the indentation would confuse Python's reader.
            lines = templatize(source, origin=place).splitlines()
            source = "\n".join(line.lstrip() for line in lines)
        for _line, message, _comments, context in extract("python", io.BytesIO(source.encode()), KEYWORDS):
            yield place, message, context


def missing(path: Path) -> list[str]:
    """Our texts that the catalogue does not translate."""
    with path.open("rb") as file:
        catalogue = read_po(file, locale=LANGUAGE)
    lacking = set()
    for _place, message, context in ours():
        entry = catalogue.get(message if isinstance(message, str) else message[0], context)
        if entry is None or entry.fuzzy or not entry.string or not all(_strings(entry.string)):
            lacking.add(str(message))
    return sorted(lacking)


def _strings(string: Any) -> tuple[str, ...]:
    return (string,) if isinstance(string, str) else tuple(string)


def compiled(path: Path) -> bytes:
    """The catalogue in the form that Django loads."""
    with path.open("rb") as file:
        catalogue = read_po(file, locale=LANGUAGE)
    target = io.BytesIO()
    write_mo(target, catalogue)
    return target.getvalue()
