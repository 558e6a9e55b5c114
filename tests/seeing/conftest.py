"""One platform for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from pytest_django import DjangoDbBlocker

from tests.seeing.platform import Listener, Platform

LOG_SHOWN = 6_000  # characters


@pytest.fixture(scope="module")
def platform(
    django_db_setup: None, django_db_blocker: DjangoDbBlocker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    """The running platform. Rows stay until its processes have ended: they would be in each other's way."""
    with django_db_blocker.unblock():
        if not connection.introspection.table_names():
            call_command("migrate", verbosity=0)  # pytest-django has nobody to make a database for
        with ExitStack() as cleanup:
            yield Platform(cleanup, tmp_path_factory.mktemp("platform"))
        call_command("flush", verbosity=0, interactive=False)


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Somebody else's system."""
    made = Listener()
    yield made
    made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failure shows the end of what the processes printed."""
    report = yield
    running: Any = getattr(item, "funcargs", {}).get("platform")
    if report.failed and running is not None:
        report.sections.append(("the platform's log", "\n".join(running.printed())[-LOG_SHOWN:]))
    return report
