"""The tenant, the agent and the people of a development machine."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from agents.actions import AgentCreateAction, AgentUpdateAction
from agents.models import Agent
from core import health
from core.actions.bus import execute
from core.models import ApiKey, Tenant, Tier
from core.models.access import SCOPES
from core.tenancy import across_tenants, tenant_scope

DEMO = "demo"
GREETING = "Hi! I am the demo agent. Ask me anything."
SCRIPTED = {"provider": "scripted", "model": "demo", "greeting": GREETING}
OPENAI = {
    "provider": "openai",
    "model": "gpt-4.1-mini",
    "instructions": "You are {{agent_name}}, a friendly and concise assistant.",
    "greeting": GREETING,
}


class Command(BaseCommand):
    help = "Make the demo tenant, its agent, its key and the admin, or bring them up to date (dev only)."

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.NOOBLE_ENV != "dev":
            raise CommandError("demo data exist only in dev")
        health.forget()  # what the last start's workers could do says nothing about this one's
        call_command("seed_templates")
        call_command("seed_prices")
        kept = _Kept(settings.NOOBLE_HOME / "demo-access.json")
        with across_tenants(), transaction.atomic():
            tier, _ = Tier.objects.update_or_create(
                slug=DEMO, defaults={"name": "Demo", "max_running": 1_000, **Tier.UNLIMITED}
            )
            tenant, _ = Tenant.objects.get_or_create(id=DEMO, defaults={"name": "Demo", "tier": tier})
            with tenant_scope(DEMO):
                agent_id = self._agent()
                api_key = self._key(tenant, kept)
            password = self._admin(kept)
        kept.save()
        demo = {
            "tenant_id": DEMO,
            "agent_id": agent_id,
            "api_key": api_key,
            "admin": {"username": "admin", "password": password},
        }
        self.stdout.write(json.dumps(demo))

    def _agent(self) -> str:
        """The demo agent answers offline, unless the operator has given an OpenAI key."""
        config = OPENAI if settings.PROVIDERS["openai"][1] else SCRIPTED
        agent = Agent.objects.filter(slug=DEMO, deleted_at=None).select_related("version").first()
        if agent is None:
            fields: dict[str, Any] = {"name": "Demo", "type": "assistant", "slug": DEMO, "config": config}
            return str(execute(AgentCreateAction(**fields, actor="seed_demo")).agent_id)
        if agent.version.config["provider"] != config["provider"]:
            execute(AgentUpdateAction(agent_id=agent.pk, config=config, actor="seed_demo"))
        return str(agent.pk)

    def _key(self, tenant: Tenant, kept: "_Kept") -> str:
        text = str(kept.values.get("api_key", ""))
        key = ApiKey.verify(text)
        if key is None or key.tenant_id != tenant.pk:
            key = ApiKey(tenant=tenant, name="demo", scopes=list(SCOPES))
            text = kept.values["api_key"] = key.mint()
            key.save()
        return text

    def _admin(self, kept: "_Kept") -> str:
        password = kept.values.setdefault("admin_password", secrets.token_urlsafe(12))
        user, created = get_user_model().objects.get_or_create(
            username="admin", defaults={"is_staff": True, "is_superuser": True}
        )
        if created or not user.check_password(password):
            user.set_password(password)
            user.save()
        return password


class _Kept:
    """What must be shown again at the next start, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def save(self) -> None:
        draft = self._path.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(self.values))
        os.replace(draft, self._path)
