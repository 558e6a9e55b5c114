"""The roof as a Django app: it starts the house."""

import importlib
import logging

from django.apps import AppConfig
from django.conf import settings

from core.actions.registry import discover

logger = logging.getLogger(__name__)


class NoobleConfig(AppConfig):
    name = "nooble"

    def ready(self) -> None:
        discover()
        # Only now: the app makes a Celery task of every action that has been found.
        from nooble import celery  # noqa: F401, PLC0415

        if settings.OTLP_ENDPOINT:
            _record_spans()


def _record_spans() -> None:
    """With the packages of requirements-otel.txt; without them the platform runs all the same."""
    try:
        otel = importlib.import_module("core.otel")
    except ModuleNotFoundError as error:
        logger.warning("no spans are recorded: %s; pip install -r requirements-otel.txt", error)
        return
    otel.install(settings.OTLP_ENDPOINT, settings.OTLP_SERVICE)
