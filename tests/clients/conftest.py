"""The platform of the acceptance tests, for programs that are not written in Python."""

from tests.acceptance.conftest import pytest_runtest_makereport, quiet_log, stack

__all__ = ["pytest_runtest_makereport", "quiet_log", "stack"]
