"""The roof as a Django app: it starts the house."""

from django.apps import AppConfig

from core.actions.registry import discover


class NoobleConfig(AppConfig):
    name = "nooble"

    def ready(self) -> None:
        discover()
        # Only now: the app makes a Celery task of every action that has been found.
        from nooble import celery  # noqa: F401, PLC0415
