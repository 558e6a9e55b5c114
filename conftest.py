"""Where pytest begins: engines first, then Django's settings, which ask where the engines are."""

import django
import pytest
from django.conf import settings

from tests import engines

engines.start()
# Every client of a test is a site of its own: it need not read all static files first, nor guard passwords.
settings.WHITENOISE_AUTOREFRESH = True
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
django.setup()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Before this session's workers are made."""
    engines.hand_down_nothing()
