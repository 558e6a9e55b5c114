"""The templates that come with the platform."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction

from agents.models import AgentTemplate
from agents.template_actions import TemplateCreateAction
from core.actions.bus import execute
from core.tenancy import across_tenants

LIBRARY = Path(__file__).parents[2] / "library"


class Command(BaseCommand):
    help = "Make the shared templates of agents/library that are not there yet; the others stay as they are."

    def handle(self, *args: Any, **options: Any) -> None:
        for path in sorted(LIBRARY.glob("*.toml")):
            if self._make(path):
                self.stdout.write(f"made {path.stem}")

    @across_tenants()
    @transaction.atomic
    def _make(self, path: Path) -> bool:
        """Whoever edited or renamed a template keeps it: its slug, which is the file's name, counts."""
        if AgentTemplate.objects.filter(tenant=None, slug=path.stem).exists():
            return False
        fields = tomllib.loads(path.read_text())
        fields["config"]["instructions"] = fields["config"]["instructions"].strip()
        execute(TemplateCreateAction(slug=path.stem, shared=True, **fields))
        return True
