"""Where pytest begins: engines first, then Django's settings, which ask where the engines are."""

import django
import pytest

from tests import engines

engines.start()
django.setup()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Before this session's workers are made."""
    engines.hand_down_nothing()
