"""What `celery -A celery_app worker` and `celery -A celery_app beat` start."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nooble.settings")
django.setup()

from nooble.celery import app

__all__ = ["app"]
