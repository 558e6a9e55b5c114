"""Requests that bear an `Idempotency-Key`."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from agents.models import Agent
from conversations.models import Message, Session
from core.actions.bus import answer
from core.api import views
from core.errors import ValidationFailed
from core.ids import new_session_id
from core.models import Task, Tenant
from orchestrator import idempotency
from orchestrator.idempotency import Once, forget_expired
from orchestrator.models import IdempotencyKey
from tests.factories import make_agent, make_key, make_tenant

SEND, ALIAS = "/api/v1/chat/message", "/api/chat/send"
KEY = "0123456789abcdefghijklmn"


def post(agent: Agent, key: str | None = KEY, *, api_key: str = "", path: str = SEND, **fields: Any) -> Any:
    body = {"agent_id": str(agent.pk), "message": "Hello?", **fields}
    headers = {"Idempotency-Key": key} if key is not None else {}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return Client().post(path, json.dumps(body), content_type="application/json", headers=headers)


def age(hours: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {IdempotencyKey._meta.db_table} SET created_at = now() - %s * INTERVAL '1 hour'", [hours]
        )


@pytest.fixture
def agent(tenant: Tenant) -> Agent:
    return make_agent(tenant)


def test_the_same_request_again_gets_the_same_answer_to_the_byte(agent: Agent) -> None:
    first, again, alias = post(agent), post(agent), post(agent, path=ALIAS)
    assert (first.status_code, again.status_code, alias.status_code) == (202, 202, 202)
    assert first.content == again.content == alias.content
    assert first.headers["Content-Type"] == again.headers["Content-Type"]
    result = first.json()["result"]
    assert result["resume_token"] and result["websocket_url"].startswith("ws://testserver/ws/")
    assert Task.unscoped.count() == Message.unscoped.count() == Session.unscoped.count() == 1
    assert str(Task.unscoped.get().pk) == result["task_id"]


def test_a_request_without_a_key_is_another_each_time(agent: Agent) -> None:
    assert post(agent, None).json()["result"]["task_id"] != post(agent, None).json()["result"]["task_id"]
    assert not IdempotencyKey.unscoped.exists()


def test_a_request_without_a_key_costs_no_query_more(
    agent: Agent, django_assert_num_queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is not there as far as such a request is concerned."""
    monkeypatch.setattr(Once, "of", None)
    monkeypatch.setattr(Once, "answer", None)
    assert post(agent, None).status_code == 202


@pytest.mark.parametrize("other", [{"message": "Other"}, {"priority": "high"}, {"metadata": {"a": 1}}])
def test_the_same_key_with_another_body_is_refused(agent: Agent, other: dict[str, Any]) -> None:
    post(agent)
    refused = post(agent, **other)
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["type"] == "IdempotencyKeyReused"
    assert error["message"] == "This Idempotency-Key was used for another request."
    assert error["details"] == {"header": "Idempotency-Key"}
    assert Task.unscoped.count() == 1


def test_the_refusal_speaks_spanish(agent: Agent) -> None:
    post(agent)
    body = {"agent_id": str(agent.pk), "message": "Other"}
    headers = {"Idempotency-Key": KEY, "Accept-Language": "es"}
    refused = Client().post(SEND, body, content_type="application/json", headers=headers)
    assert refused.json()["error"]["message"] == "Esta Idempotency-Key ya se usó para otra petición."


def test_how_a_body_is_spelled_makes_no_difference(agent: Agent) -> None:
    spelled = f'{{"message":"Hell\\u006f?",  "agent_id": "{agent.pk}"}}'
    headers = {"Idempotency-Key": KEY}
    again = Client().post(SEND, spelled, content_type="application/json", headers=headers)
    assert again.content == post(agent).content


def test_a_key_belongs_to_its_agent_and_session(tenant: Tenant, agent: Agent) -> None:
    sessions = [new_session_id(), new_session_id()]
    answers = [
        post(agent),
        post(make_agent(tenant)),
        post(make_agent(make_tenant())),
        *(post(agent, session_id=session_id) for session_id in sessions),
    ]
    assert [answer.status_code for answer in answers] == [202] * 5
    assert len({answer.json()["result"]["task_id"] for answer in answers}) == 5
    for row in IdempotencyKey.unscoped.all():
        assert f"/ws/{row.tenant_id}/" in row.answer


def test_a_key_belongs_to_its_api_key(tenant: Tenant, agent: Agent) -> None:
    (_, mine), (_, another), (_, foreign) = make_key(tenant), make_key(tenant), make_key(make_tenant())
    answers = [post(agent, api_key=text) for text in (mine, another, foreign, "")]
    assert [answer.status_code for answer in answers] == [202] * 4
    assert len({answer.json()["result"]["task_id"] for answer in answers}) == 4
    assert post(agent, api_key=mine).content == answers[0].content
    # Of one API key, whatever the agent: so another agent is another body.
    assert post(make_agent(make_tenant()), api_key=mine).status_code == 409


@pytest.mark.parametrize(
    ("length", "session", "keyed", "status"),
    [
        (15, True, False, 422),
        (16, True, False, 202),
        (255, True, False, 202),
        (256, True, False, 422),
        (16, False, False, 422),
        (21, False, False, 422),
        (22, False, False, 202),
        (15, False, True, 422),
        (16, False, True, 202),
        (0, False, False, 422),
        (0, True, True, 422),
    ],
)
def test_lengths(agent: Agent, length: int, session: bool, keyed: bool, status: int) -> None:
    fields = {"session_id": new_session_id()} if session else {}
    api_key = make_key(make_tenant())[1] if keyed else ""
    response = post(agent, "k" * length, api_key=api_key, **fields)
    assert response.status_code == status
    assert Task.unscoped.count() == IdempotencyKey.unscoped.count() == (status == 202)
    if status == 422:
        assert response.json()["error"]["details"].keys() == {"Idempotency-Key"}


@given(st.text(min_size=0, max_size=300))
def test_only_printable_ascii_of_the_right_length_is_a_key(text: str) -> None:
    fits = 16 <= len(text) <= 255 and all(" " <= character <= "~" for character in text)
    try:
        Once.of(text, {}, uuid.uuid4(), "session", None)
    except ValidationFailed as refused:
        assert not fits
        assert refused.details.keys() == {"Idempotency-Key"}
    else:
        assert fits


@pytest.mark.parametrize(
    "bad", ["é" * 30, "tab\tin the middle of it", "\x7f" * 30, "\x1b[31m and more of it"]
)
def test_other_characters_are_refused_and_nothing_is_stored(agent: Agent, bad: str) -> None:
    response = post(agent, bad)
    assert response.status_code == 422
    assert not Task.unscoped.exists()


def test_a_refused_request_may_be_tried_again(committed_tenant: Tenant) -> None:
    agent, other = make_agent(committed_tenant), make_agent(committed_tenant)
    session_id = new_session_id()
    post(other, session_id=session_id)
    assert post(agent, session_id=session_id).status_code == 409
    assert not IdempotencyKey.unscoped.exclude(answer__contains=session_id).exists()
    assert IdempotencyKey.unscoped.count() == Task.unscoped.count() == 1
    Session.unscoped.filter(key=session_id).update(agent=agent)
    assert post(agent, session_id=session_id).status_code == 202


def test_what_breaks_in_the_middle_leaves_nothing(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer could not be kept: then there is no task, and no message in a queue."""
    agent = make_agent(committed_tenant)
    with monkeypatch.context() as patch:
        patch.setattr(Once, "_keep", lambda *_: 1 / 0)
        assert post(agent).status_code == 500
    assert not Task.unscoped.exists()
    assert not IdempotencyKey.unscoped.exists()
    assert post(agent).status_code == 202


def test_the_message_is_published_once(committed_tenant: Tenant) -> None:
    agent = make_agent(committed_tenant)
    answer = post(agent).json()
    assert (answer["result"]["status"], Task.unscoped.get().status) == ("pending", "queued")
    assert post(agent).json() == answer


def test_after_a_day_the_key_is_free(agent: Agent) -> None:
    first = post(agent).json()["result"]
    age(23.9)
    assert post(agent).json()["result"] == first
    age(24.1)
    other = post(agent, message="Other")
    assert other.status_code == 202
    assert other.json()["result"]["task_id"] != first["task_id"]
    assert post(agent, message="Other").content == other.content
    assert IdempotencyKey.unscoped.count() == 1


def test_a_taken_over_key_belongs_to_the_tenant_that_took_it(tenant: Tenant, agent: Agent) -> None:
    api_key = make_key(tenant)[1]
    post(agent, api_key=api_key)
    age(25)
    other = make_tenant()
    assert post(make_agent(other), api_key=api_key).status_code == 202
    assert IdempotencyKey.unscoped.get().tenant_id == other.pk


def test_expired_keys_are_forgotten_in_batches(agent: Agent) -> None:
    for number in range(5):
        post(agent, f"{KEY}-{number}")
    age(24.1)
    post(agent, f"{KEY}-new")
    assert [forget_expired(limit=3) for _ in range(3)] == [3, 2, 0]
    assert IdempotencyKey.unscoped.get().key == f"{KEY}-new"


# Two at once: threads with connections of their own.


@contextmanager
def held(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The first request stops in the middle of its transaction; yields what it sets when it is there."""
    there = threading.Event()

    def slow(action: Any) -> Any:
        done = answer(action)
        if not there.is_set():
            there.set()
            assert release.wait(20)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(views, "answer", slow)
        yield there


def closing(work: Any, *arguments: Any, **fields: Any) -> Any:
    try:
        return work(*arguments, **fields)
    finally:
        connection.close()


def waits_for_a_lock() -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(cursor.fetchone()[0])


@pytest.mark.parametrize("expired", [False, True])
def test_a_duplicate_waits_for_the_first(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch, expired: bool
) -> None:
    agent, release = make_agent(committed_tenant), threading.Event()
    if expired:
        post(agent)
        age(25)
    with ThreadPoolExecutor(2) as pool, held(release, monkeypatch) as there:
        first = pool.submit(closing, post, agent)
        assert there.wait(20)
        second = pool.submit(closing, post, agent)
        while not waits_for_a_lock():
            assert not second.done()
        release.set()
        assert first.result().content == second.result().content
    assert Task.unscoped.count() == 1 + expired


def test_a_duplicate_waits_for_a_while_only(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "LONGEST_WAIT", "50ms")
    agent, release = make_agent(committed_tenant), threading.Event()
    with ThreadPoolExecutor(2) as pool, held(release, monkeypatch) as there:
        first = pool.submit(closing, post, agent)
        assert there.wait(20)
        second = pool.submit(closing, post, agent).result()
        assert (second.status_code, second.headers["Retry-After"]) == (503, "5")
        assert second.json()["error"]["type"] == "ServiceUnavailable"
        release.set()
        assert first.result().status_code == 202
    assert post(agent).content == first.result().content


def test_a_duplicate_of_one_that_fails_goes_first(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, release = make_agent(committed_tenant), threading.Event()
    keep, failed = Once._keep, threading.Event()

    def fail_once(self: Once, text: str, session_id: str) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError
        keep(self, text, session_id)

    monkeypatch.setattr(Once, "_keep", fail_once)
    with ThreadPoolExecutor(2) as pool, held(release, monkeypatch) as there:
        first = pool.submit(closing, post, agent)
        assert there.wait(20)
        second = pool.submit(closing, post, agent)
        while not waits_for_a_lock():
            assert not second.done()
        release.set()
        assert (first.result().status_code, second.result().status_code) == (500, 202)
    assert Task.unscoped.count() == 1


def test_forgetting_leaves_a_key_that_is_being_taken_over(
    committed_tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, release = make_agent(committed_tenant), threading.Event()
    post(agent)
    age(25)
    with ThreadPoolExecutor(1) as pool, held(release, monkeypatch) as there:
        taking_over = pool.submit(closing, post, agent)
        assert there.wait(20)
        assert forget_expired() == 0
        release.set()
        assert taking_over.result().status_code == 202
    assert IdempotencyKey.unscoped.count() == 1
