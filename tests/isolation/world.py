"""One of everything that a tenant can have, and what tells it from everybody else's."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from django.apps import apps
from django.db import connection, transaction
from django.utils import timezone

from agents.bulk_actions import AgentBulkUpdateAction
from agents.models import AgentBulkItem, AgentTemplate
from core.audit import record
from core.ids import parse_uuid
from core.models import (
    Budget,
    BudgetUse,
    EndUserSecret,
    Membership,
    ModelPrice,
    Notice,
    ProviderCredential,
    Task,
    UsageRecord,
)
from core.models.membership import Role
from core.postgres.cursors import tenant_column, tenant_tables
from core.tenancy import tenant_scope
from orchestrator.models import Batch, BatchItem, Delivery, DeliveryAttempt, IdempotencyKey, WebhookEndpoint
from tests.factories import (
    make_agent,
    make_key,
    make_message,
    make_person,
    make_run,
    make_session,
    make_task,
    make_tenant,
)


class World:
    """A tenant that has everything. `ids` are the names by which routes and actions ask for them."""

    def __init__(self) -> None:
        tenant = self.tenant = make_tenant()
        self.slug = tenant.pk
        mark = f"only-{self.slug}"  # in whatever has a name or a text
        self.key_row, self.key = make_key(tenant)
        self.owner = make_person((tenant, Role.OWNER))
        secret = EndUserSecret(tenant=tenant, name=mark)
        secret.mint()
        secret.save()
        template = AgentTemplate.objects.create(
            tenant=tenant,
            slug=mark[:40],
            name=mark,
            type="assistant",
            config={"provider": "scripted", "model": "echo"},
        )
        self.agent = make_agent(tenant, slug=f"a-{self.slug}", instructions=mark, greeting=mark)
        self.session = make_session(self.agent)
        self.task = make_run(self.session, mark)
        make_message(self.session, "assistant", mark, self.task, seq=1)
        output = {"text": mark, "tool_calls": [], "citations": [], "usage": {}, "finish_reason": "stop"}
        ended = make_run(self.session, mark)
        Task.unscoped.filter(pk=ended.pk).update(
            status="completed", result=output, finished_at=timezone.now()
        )
        answer = make_message(self.session, "assistant", mark, ended, seq=2)
        type(answer).unscoped.filter(pk=answer.pk).update(finish_reason="stop")
        lone = make_task(
            tenant,
            action="agent.execute",
            agent_id=self.agent.pk,
            status="completed",
            result=output,
            finished_at=timezone.now(),
            payload={
                "agent_id": str(self.agent.pk),
                "version_id": self.agent.version_id,
                "session_id": "",
                "session_row_id": 0,
                "messages": [{"role": "user", "content": mark}],
            },
        )
        bulk = make_task(tenant, action=AgentBulkUpdateAction.verb, payload={"changes": {"type": mark}})
        AgentBulkItem.unscoped.create(tenant=tenant, task=bulk, position=0, agent_id=self.agent.pk)
        budget = Budget.unscoped.create(tenant=tenant, subject="tenant", period="day", limit_tokens=10**9)
        BudgetUse.unscoped.create(tenant=tenant, budget=budget, begins_at=timezone.now())
        price = ModelPrice.unscoped.create(
            tenant=tenant,
            provider="openai",
            model=mark,
            prompt=1,
            completion=2,
            valid_from=timezone.now(),
            source="console",
        )
        UsageRecord.unscoped.create(
            tenant=tenant,
            task=ended,
            attempt=1,
            call=1,
            agent_id=self.agent.pk,
            session_id=self.session.key,
            end_user=mark,
            provider="scripted",
            model=mark,
            prompt_tokens=77,
            completion_tokens=7,
            accuracy="exact",
        )
        provider = ProviderCredential.unscoped.create(
            tenant=tenant, name=f"p-{self.slug}", base_url=f"https://{self.slug}.example.com/v1"
        )
        endpoint = WebhookEndpoint.unscoped.create(
            tenant=tenant, url=f"https://{self.slug}.example.com/hook", description=mark, secret="x"
        )
        notice = Notice.unscoped.create(
            tenant=tenant,
            event_id=uuid.uuid4(),
            event="agent_updated",
            subject=str(self.agent.pk),
            body={
                "event": "agent_updated",
                "event_id": str(uuid.uuid4()),
                "data": {"agent_id": str(self.agent.pk), "mark": mark},
            },
        )
        delivery = Delivery.unscoped.create(
            tenant=tenant,
            endpoint=endpoint,
            notice=notice,
            event=notice.event,
            subject=notice.subject,
            status="dead",
            finished_at=timezone.now(),
            claim=uuid.uuid4(),
        )
        DeliveryAttempt.unscoped.create(
            tenant=tenant, delivery=delivery, started_at=timezone.now(), seconds=1, answer=mark
        )
        IdempotencyKey.unscoped.create(tenant=tenant, scope=self.slug, key=mark, body="x", answer="{}")
        batch = Batch.unscoped.create(tenant=tenant, agent_id=self.agent.pk, total=1)
        BatchItem.unscoped.create(
            tenant=tenant,
            batch=batch,
            position=1,
            custom_id=mark,
            agent_id=self.agent.pk,
            version_id=self.agent.version_id,
            request={"messages": [{"role": "user", "content": mark}]},
        )
        with transaction.atomic():
            record(
                "agent.update", "agent", self.agent.pk, tenant_id=self.slug, before={}, after={"name": mark}
            )

        self.ids: dict[str, Any] = {
            "tenant_id": self.slug,
            "agent_id": str(self.agent.pk),
            "agent_slug": self.agent.slug,
            "version_id": self.agent.version_id,
            "session_id": self.session.key,
            "session_row_id": self.session.pk,
            "user_id": mark,
            "task_id": str(self.task.pk),
            "ended_id": str(ended.pk),
            "execution_id": str(lone.pk),
            "bulk_id": str(bulk.pk),
            "template_id": str(template.pk),
            "budget_id": str(budget.pk),
            "price_id": price.pk,
            "name": provider.name,
            "webhook_id": str(endpoint.pk),
            "delivery_id": str(delivery.pk),
            "claim": str(delivery.claim),
            "batch_id": str(batch.pk),
            "secret_id": secret.prefix,
            "key_id": self.key_row.pk,
            "membership_id": Membership.unscoped.get(tenant=tenant).pk,
            "subject": str(self.agent.pk),
            "number": "1",
        }

    def marks(self) -> set[str]:
        """What nobody else may ever be shown."""
        guessable = {"number", "version_id", "session_row_id", "price_id", "key_id", "membership_id"}
        return {str(value) for name, value in self.ids.items() if name not in guessable} | {
            f"only-{self.slug}"
        }


def absent_like(ids: dict[str, Any]) -> dict[str, Any]:
    """Ids of the same shapes that nobody has."""

    def other(value: Any) -> Any:
        if isinstance(value, int):
            return 2**40 + value
        if parse_uuid(value) is not None:
            return str(uuid.uuid4())
        return hashlib.sha256(value.encode()).hexdigest()[: max(len(value), 12)]

    return {name: other(value) for name, value in ids.items()}


def everything() -> dict[str, str]:
    """A digest of every table that has something of a tenant's: nothing of it may change."""
    found = {}
    with connection.cursor() as cursor:
        for table in sorted(tenant_tables() | {"django_admin_log"}):
            cursor.execute(
                f"SELECT md5(coalesce(string_agg(t::text, ',' ORDER BY t::text), '')) FROM {table} t"
            )
            found[table] = cursor.fetchone()[0]
    return found


def of(world: World) -> dict[str, str]:
    """A digest of everything that is the world's."""
    with tenant_scope(world.slug):
        return everything()


def tables_without_a_row(world: World) -> set[str]:
    """Tables of tenants of which the world has nothing: then nothing is proved of them."""
    missing = set()
    for model in apps.get_models():
        column = tenant_column(model)
        if column and not model._base_manager.filter(**{column: world.slug}).exists():
            missing.add(model._meta.label)
    return missing
