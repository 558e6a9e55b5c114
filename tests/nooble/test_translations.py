"""Every text speaks Spanish, and what is compiled is what was written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from django.conf import settings
from django.utils.translation import gettext, override

from nooble.management.commands.translations import LANGUAGE, PO, compiled, missing, ours

CATALOGUE = Path(settings.BASE_DIR) / PO
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|\{\{?\w*\}?\}")


def test_every_text_is_translated() -> None:
    found = [message for _place, message, _context in ours()]
    assert "Task not found." in found  # of Python
    assert "Last failures" in found  # of a template
    assert missing(CATALOGUE) == [], "see docs/how-to/translations.md"


def test_the_compiled_catalogue_is_the_written_one() -> None:
    assert CATALOGUE.with_suffix(".mo").read_bytes() == compiled(CATALOGUE), "run `manage.py translations`"


def test_translations_keep_their_placeholders() -> None:
    with CATALOGUE.open("rb") as file:
        for message in read_po(file, locale=LANGUAGE):
            if not message.id or not message.string:
                continue
            originals = [message.id] if isinstance(message.id, str) else message.id
            texts = [message.string] if isinstance(message.string, str) else message.string
            for text in texts:
                wanted = sorted(PLACEHOLDER.findall(originals[-1]))
                assert sorted(PLACEHOLDER.findall(text)) == wanted, message.id


@pytest.mark.parametrize(
    ("english", "spanish"),
    [
        ("Task not found.", "Tarea no encontrada"),
        ("Cannot cancel a task in status: %(status)s", "No se puede cancelar tarea en estado: %(status)s"),
        ("Task cancelled successfully", "Tarea cancelada exitosamente"),
    ],
)
def test_texts_of_the_contract(english: str, spanish: str) -> None:
    with override(LANGUAGE):
        assert gettext(english) == spanish
