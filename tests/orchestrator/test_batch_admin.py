"""Batches in the console."""

from __future__ import annotations

import json
import uuid
from typing import Any

from django.test import Client
from django.urls import reverse

from core import aio
from core.models import AuditEntry, Tenant
from core.models.membership import Role
from orchestrator.models import Batch, BatchItem
from tests.factories import make_agent, make_person, make_tenant

ITEM = {
    "messages": [{"role": "user", "content": "<b>Hi</b>"}],
    "options": None,
    "end_user": "",
    "metadata": {},
}
ANSWER = {"text": "<i>Ho</i>", "usage": {}, "tool_calls": [], "citations": []}


def page(kind: str, name: str, *args: object) -> str:
    return reverse(f"admin:orchestrator_{kind}_{name}", args=args)


def make_batch(tenant: Tenant) -> Batch:
    """One of whose three items the first has an answer and the second has failed."""
    agent = make_agent(tenant)
    batch: Batch = Batch.unscoped.create(tenant=tenant, agent_id=agent.pk, total=3, succeeded=1, failed=1)
    ended: list[dict[str, Any]] = [
        {"status": "completed", "result": ANSWER, "finished_at": batch.created_at},
        {
            "status": "failed",
            "error": {"type": "Suspended", "message": "No.", "details": {}},
            "finished_at": batch.created_at,
        },
        {},
    ]
    for position, fields in enumerate(ended, start=1):
        BatchItem.unscoped.create(
            tenant=tenant,
            batch=batch,
            position=position,
            custom_id=f"c{position}",
            agent_id=agent.pk,
            version_id=agent.version_id,
            request=ITEM,
            **fields,
        )
    return batch


def test_batches_and_their_items_are_looked_at(admin_client: Client, tenant: Tenant) -> None:
    batch, other = make_batch(tenant), make_batch(make_tenant())
    change = page("batch", "change", batch.pk)
    for term, found in (("", True), (str(batch.pk), True), (str(other.pk), False), ("x", False)):
        listed = admin_client.get(page("batch", "changelist"), {"q": term}).content.decode()
        assert (change in listed) == found
    listed = admin_client.get(page("batch", "changelist")).content.decode()
    assert "2 of 3 (66 %)" in listed and "processing" in listed
    shown = admin_client.get(change).content.decode()
    assert page("batch", "cancel", batch.pk) in shown
    assert f'href="{reverse("admin:orchestrator_batch_results", args=[batch.pk])}"' in shown
    items = page("batchitem", "changelist")
    assert f'href="{items}?batch__id__exact={batch.pk}"' in shown
    rows = list(BatchItem.unscoped.order_by("pk"))
    for query, wanted in (
        ({"batch__id__exact": str(batch.pk)}, rows[:3]),
        ({"q": str(batch.pk)}, rows[:3]),
        ({"q": "c2"}, [rows[1], rows[4]]),
        ({"q": "nothing"}, []),
    ):
        listed = admin_client.get(items, query).content.decode()
        assert [row for row in rows if page("batchitem", "change", row.pk) in listed] == wanted
        assert ("Suspended" in listed) == bool(wanted)
    first = BatchItem.unscoped.get(batch=batch, position=1)
    shown = admin_client.get(page("batchitem", "change", first.pk)).content.decode()
    assert "&lt;i&gt;Ho" in shown and "&lt;b&gt;Hi" in shown and "<i>Ho" not in shown
    for address in (change, page("batchitem", "change", first.pk)):
        assert admin_client.post(address, {"status": "completed"}).status_code == 403


def test_a_batch_is_cancelled(committed_tenant: Tenant, admin_client: Client) -> None:
    batch = make_batch(committed_tenant)
    cancel = page("batch", "cancel", batch.pk)
    assert admin_client.get(cancel).status_code == 405
    admin_client.post(cancel)
    batch.refresh_from_db()
    assert (batch.status, batch.cancelled, batch.cancelled_by) == ("cancelled", 1, "user:admin")
    assert cancel not in admin_client.get(page("batch", "change", batch.pk)).content.decode()
    entry = AuditEntry.unscoped.get(verb="batch.cancel")
    assert (entry.object_id, entry.source) == (str(batch.pk), "admin")
    refused = admin_client.post(cancel, follow=True).content.decode()
    assert "Cannot cancel a task in status: cancelled" in refused


def results(client: Client, batch_id: object) -> tuple[Any, list[Any]]:
    answer: Any = client.get(reverse("admin:orchestrator_batch_results", args=[batch_id]))

    async def whole() -> bytes:
        return b"".join([piece async for piece in answer])

    return answer, [json.loads(line) for line in aio.run(whole()).splitlines()] if answer.streaming else []


def test_the_results_are_a_file(admin_client: Client, committed_tenant: Tenant) -> None:
    batch = make_batch(committed_tenant)
    answer, found = results(admin_client, batch.pk)
    assert answer["Content-Type"] == "application/jsonl"
    assert [(one["custom_id"], one["status"]) for one in found] == [("c1", "completed"), ("c2", "failed")]
    assert results(admin_client, uuid.uuid4())[0].status_code == 404


def test_people_see_their_tenants_batches(committed_tenant: Tenant, client: Client) -> None:
    ours, theirs = make_batch(committed_tenant), make_batch(make_tenant())
    client.force_login(make_person((committed_tenant, Role.VIEWER)))
    assert len(results(client, ours.pk)[1]) == 2
    assert results(client, theirs.pk)[0].status_code == 404
    listed = client.get(page("batch", "changelist")).content.decode()
    assert page("batch", "change", ours.pk) in listed and str(theirs.pk) not in listed
    assert (
        page("batch", "cancel", ours.pk) not in client.get(page("batch", "change", ours.pk)).content.decode()
    )
    assert client.post(page("batch", "cancel", ours.pk)).status_code == 403
    ours.refresh_from_db()
    assert ours.status == "processing"
