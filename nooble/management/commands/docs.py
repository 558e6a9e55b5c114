"""Write the pages of docs/ that the code knows best."""

from typing import Any

from django.core.management.base import BaseCommand

from nooble.reference import PAGES


class Command(BaseCommand):
    help = "Write docs/endpoints.md, docs/errors.md, docs/events.md and docs/settings.md from the code."

    def handle(self, *args: Any, **options: Any) -> None:
        for path, render in PAGES.items():
            path.write_text(render())
            self.stdout.write(str(path))
