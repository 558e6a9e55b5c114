"""The platform's Celery app for `tests.workers`: its workers end sooner."""

from __future__ import annotations

import os

from celery_app import app
from core.actions import drain

drain.DRAIN_SECONDS = float(os.environ["TEST_DRAIN_SECONDS"])

__all__ = ["app"]
