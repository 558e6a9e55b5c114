"""Django's shell, for whoever holds the keys of the platform."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import shell

from core.tenancy import across_tenants


class Command(shell.Command):
    """It sees the rows of all tenants: who starts it has chosen none."""

    @across_tenants()
    def handle(self, **options: Any) -> None:
        super().handle(**options)
