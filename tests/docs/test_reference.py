"""The generated pages are those that the code generates, and the environment is documented in full."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nooble.env import ROOT
from nooble.reference import PAGES
from nooble.reference.endpoints import class_of
from nooble.reference.settings import documented, names


@pytest.mark.parametrize(("path", "render"), PAGES.items(), ids=[path.name for path in PAGES])
def test_the_committed_page_is_what_the_code_generates(path: Path, render: Callable[[], str]) -> None:
    assert path.read_text() == render(), "run `make docs`, or `.venv/bin/python manage.py docs`"


def test_the_example_file_documents_exactly_the_variables_that_are_read() -> None:
    variables = list(documented())
    assert sorted(variable.name for variable in variables) == sorted(names())
    assert [variable.name for variable in variables if not variable.meaning] == []


def test_compose_hands_on_every_variable() -> None:
    """A variable that compose does not name never reaches a container, whatever .env says."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    of_make_run = {"NOOBLE_HOME", "NOOBLE_DEV_PUBLIC", "HOST", "PORT"}
    for service in ("migrate", "web", "agents", "domains", "beat"):
        assert set(names()) - of_make_run <= set(services[service]["environment"]), service


def test_an_address_that_nobody_has_classified_stops_the_page() -> None:
    assert class_of("/internal/v1/new") == "internal"
    assert class_of("/api/v1/new") == "management"
    with pytest.raises(ValueError, match="whom it is for"):
        class_of("/new")
