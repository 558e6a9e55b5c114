"""Tasks in the console: search, cancel, retry."""

from __future__ import annotations

import uuid

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from conversations.models import Message
from core.actions.worker import run_task
from core.models import Task, Tenant
from tests.factories import make_agent, make_run, make_session, make_task

LIST = reverse("admin:core_task_changelist")


def _do(verb: str, task: Task) -> str:
    return reverse(f"admin:core_task_{verb}", args=[task.pk])


def _change(task: Task) -> str:
    return reverse("admin:core_task_change", args=[task.pk])


def _found(client: Client, **query: str) -> set[uuid.UUID]:
    page = client.get(LIST, query)
    assert page.status_code == 200
    return {task.pk for task in page.context["cl"].result_list}


def test_search_and_filters(admin_client: Client, tenant: Tenant) -> None:
    one = make_task(tenant, session_id="s-1", action="agent.execute")
    two = make_task(tenant, session_id="s-2", status="failed", queue=f"tool:{tenant.pk}:call:low")
    assert _found(admin_client) == {one.pk, two.pk}
    assert _found(admin_client, q=str(one.pk)) == {one.pk}
    assert _found(admin_client, q="s-2") == {two.pk}
    assert _found(admin_client, q="s-") == set()
    assert _found(admin_client, status__exact="failed") == {two.pk}
    assert _found(admin_client, domain="tool") == {two.pk}
    assert _found(admin_client, verb="agent.execute") == {one.pk}
    assert _found(admin_client, tenant__id__exact=tenant.pk) == {one.pk, two.pk}
    assert _found(admin_client, tenant__id__exact="nobody") == set()


def test_what_agents_wrote_is_escaped(admin_client: Client, tenant: Tenant) -> None:
    attack = "<script>alert(1)</script>"
    task = make_task(tenant, status="completed", result={"text": attack}, payload={"text": attack})
    page = admin_client.get(_change(task)).content.decode()
    assert attack not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


def test_cancel_a_waiting_task(admin_client: Client, tenant: Tenant) -> None:
    task = make_task(tenant, status="queued")
    page = admin_client.get(_change(task)).content.decode()
    assert _do("cancel", task) in page
    assert _do("retry", task) not in page

    assert admin_client.get(_do("cancel", task)).status_code == 405
    page = admin_client.post(_do("cancel", task), follow=True).content.decode()
    task.refresh_from_db()
    assert (task.status, task.cancelled_by) == ("cancelled", "user:admin")
    assert f"Task {task.pk}: cancelled" in page
    assert _do("retry", task) in page
    assert LogEntry.objects.get(object_id=str(task.pk)).user.username == "admin"


def test_cancel_needs_the_csrf_token(admin_user: object, tenant: Tenant) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)  # type: ignore[arg-type]
    task = make_task(tenant, status="queued")
    assert client.post(_do("cancel", task)).status_code == 403
    task.refresh_from_db()
    assert task.status == "queued"


def test_a_selection_is_cancelled_row_by_row(admin_client: Client, committed_tenant: Tenant) -> None:
    waiting = make_task(committed_tenant, status="queued")
    running = make_task(committed_tenant, status="processing", attempt=1)
    ended = make_task(committed_tenant, status="completed")
    rows = [str(task.pk) for task in (waiting, running, ended)]
    page = admin_client.post(LIST, {"action": "cancel", "_selected_action": rows}, follow=True)
    statuses = {task.pk: task.status for task in Task.unscoped.all()}
    assert [statuses[task.pk] for task in (waiting, running, ended)] == [
        "cancelled",
        "cancelling",
        "completed",
    ]
    assert "Cannot cancel a task in status: completed" in page.content.decode()


def test_only_an_ended_task_is_retried(admin_client: Client, committed_tenant: Tenant) -> None:
    task = make_task(committed_tenant, status="processing", attempt=1)
    page = admin_client.post(_do("retry", task), follow=True).content.decode()
    assert "Cannot retry a task in status: processing" in page
    assert not Task.unscoped.filter(retry_of=task).exists()


@pytest.mark.parametrize("times", [1, 2])
def test_a_retried_run_answers_the_same_question(
    admin_client: Client, committed_tenant: Tenant, times: int
) -> None:
    agent = make_agent(committed_tenant)
    session = make_session(agent)
    task = make_run(session, "What is the sea?")
    make_run(session, "And the sky?")
    Task.unscoped.filter(pk=task.pk).update(status="failed", error={"type": "X", "message": "x"})
    first = task
    for _ in range(times):
        admin_client.post(_do("retry", task))
        again = Task.unscoped.get(retry_of=task)
        assert (again.action, again.payload, again.priority) == (task.action, task.payload, task.priority)
        assert again.global_task_id == first.pk
        assert again.callback == {
            "action": "websocket.send_message",
            "payload": {"session_id": session.key, "task_id": str(again.pk)},
        }
        run_task(str(again.pk), committed_tenant.pk)
        again.refresh_from_db()
        assert again.status == "completed", again.error
        answer = Message.unscoped.get(task=again, role="assistant")
        assert "What is the sea?" in answer.text
        assert "sky" not in answer.text
        assert Task.unscoped.filter(action="websocket.send_message", global_task_id=first.pk).count() > 0
        task = again
