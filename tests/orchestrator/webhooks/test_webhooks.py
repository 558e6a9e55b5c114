"""Webhooks over HTTP, and what becomes of deliveries; to a real receiver, without worker processes."""

from __future__ import annotations

import datetime
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from standardwebhooks import WebhookVerificationError

from agents.events import notify_agent
from agents.models import Agent
from core import outbox
from core.actions.bus import execute
from core.actions.notices import NoticeRelayAction
from core.models import AuditEntry, Notice, Task, Tenant
from core.tenancy import tenant_scope
from orchestrator.models import Delivery, DeliveryAttempt, WebhookEndpoint
from orchestrator.tiers import MOST_ENDPOINTS
from orchestrator.webhooks import postman as module
from orchestrator.webhooks.postman import Postman
from orchestrator.webhooks.schedule import PAUSES, next_pause
from tests.factories import make_agent, make_key, make_tenant
from tests.orchestrator.webhooks.receiver import Receiver

WEBHOOKS = "/api/v1/webhooks"


class Api:
    """A tenant's management API, with one of its keys."""

    def __init__(self, tenant: Tenant, scopes: tuple[str, ...] = ("webhooks:read", "webhooks:write")) -> None:
        self.tenant = tenant
        self._key = make_key(tenant, scopes)[1]

    def __call__(self, method: str, path: str, body: Any = None, expect: int = 200) -> Any:
        answer = Client().generic(
            method,
            path,
            json.dumps(body) if body is not None else "",
            content_type="application/json",
            headers={"Authorization": f"Bearer {self._key}"},
        )
        assert answer.status_code == expect, answer.content
        return answer.json() if answer.content else None

    def create(self, url: str, **fields: Any) -> dict[str, Any]:
        made: dict[str, Any] = self("POST", WEBHOOKS, {"url": url, **fields}, expect=201)
        return made

    def deliveries(self, webhook: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self("GET", f"{WEBHOOKS}/{webhook['webhook_id']}/deliveries{query}")[
            "items"
        ]
        return items

    def read(self, webhook: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self("GET", f"{WEBHOOKS}/{webhook['webhook_id']}")
        return found


@pytest.fixture
def api(committed_tenant: Tenant) -> Api:
    return Api(committed_tenant)


@pytest.fixture
def agent(committed_tenant: Tenant) -> Agent:
    agent = make_agent(committed_tenant)
    Notice.unscoped.all().delete()
    return agent


@pytest.fixture
def postman() -> Iterator[Postman]:
    """Carriers without the thread that looks after them: tests say when it is time."""
    made = Postman()
    yield made
    made._carriers.shutdown(wait=True)


def happen(agent: Agent, *changes: str) -> None:
    """A change of the agent, told as a worker tells it."""
    with tenant_scope(agent.tenant_id):
        with connection.cursor(), outbox.transaction.atomic():
            notify_agent("agent_updated", agent, changes)
        execute(NoticeRelayAction(subject=str(agent.pk)))


def round_of(postman: Postman) -> None:
    """Everything that is due is tried once, and what follows from it is written."""
    for delivery in postman._claim():
        postman._carry(delivery)


def advance(postman: Postman) -> None:
    """Time passes until the next attempt of everything that waits."""
    Delivery.unscoped.filter(status="pending").update(due_at=Now())
    round_of(postman)


def test_an_event_is_delivered_signed_and_logged(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman
) -> None:
    webhook = api.create(receiver.url, description="Ours")
    happen(agent, "name")
    round_of(postman)
    [request] = receiver.requests
    event = request.verify(webhook["secret"])
    notice = Notice.unscoped.get()
    assert event == {
        "type": "agent_updated",
        "event": "agent_updated",
        "service": "agent-management",
        "event_id": str(notice.event_id),
        "seq": None,
        "task_id": None,
        "global_task_id": None,
        "tenant_id": api.tenant.pk,
        "session_id": None,
        "timestamp": event["timestamp"],
        "data": {
            "agent_id": str(agent.pk),
            "agent_name": agent.name,
            "agent_type": agent.type,
            "version": "1.0",
            "changes": ["name"],
        },
    }
    assert request.headers["webhook-id"] == str(notice.event_id)
    assert request.headers["Content-Type"] == "application/json"
    [delivery] = api.deliveries(webhook)
    assert (delivery["event"], delivery["status"], delivery["next_attempt_at"]) == (
        "agent_updated",
        "delivered",
        None,
    )
    [attempt] = delivery["attempts"]
    assert (attempt["status_code"], attempt["answer"], attempt["error"]) == (200, "thanks", "")
    assert 0 <= attempt["seconds"] < 10


def test_the_secret_is_shown_once_and_kept_encrypted(api: Api, receiver: Receiver) -> None:
    webhook = api.create(receiver.url)
    secret = webhook["secret"]
    assert secret.startswith("whsec_")
    assert "secret" not in api.read(webhook)
    assert "secret" not in api("GET", WEBHOOKS)["items"][0]
    assert "secret" not in api("PATCH", f"{WEBHOOKS}/{webhook['webhook_id']}", {"description": "x"})
    row = str(WebhookEndpoint.unscoped.filter(pk=webhook["webhook_id"]).values().get())
    assert secret not in row and secret.removeprefix("whsec_") not in row
    for entry in AuditEntry.unscoped.filter(object_id=webhook["webhook_id"]):
        assert "whsec_" not in str(entry.after) and entry.after.get("secret", "***") == "***"


def test_webhooks_are_made_changed_and_deleted(api: Api, receiver: Receiver) -> None:
    webhook = api.create(receiver.url, events=["agent_created"], description="Shop")
    there = f"{WEBHOOKS}/{webhook['webhook_id']}"
    assert {key: webhook[key] for key in ("url", "events", "description", "disabled", "disabled_reason")} == {
        "url": receiver.url,
        "events": ["agent_created"],
        "description": "Shop",
        "disabled": False,
        "disabled_reason": "",
    }
    changed = api("PATCH", there, {"url": f"{receiver.url}/2", "events": [], "disabled": True})
    assert (changed["url"], changed["events"], changed["disabled"]) == (f"{receiver.url}/2", [], True)
    assert changed["disabled_reason"] == "owner"
    assert changed["description"] == "Shop"
    assert api("PATCH", there, {"disabled": False})["disabled_reason"] == ""
    second = api.create(receiver.url)
    page = api("GET", f"{WEBHOOKS}?limit=1")
    assert [item["webhook_id"] for item in page["items"]] == [webhook["webhook_id"]]
    page = api("GET", f"{WEBHOOKS}?limit=1&cursor={page['next']}")
    assert [item["webhook_id"] for item in page["items"]] == [second["webhook_id"]]
    assert page["next"] is None
    api("DELETE", there, expect=204)
    api("GET", there, expect=404)
    verbs = AuditEntry.unscoped.filter(object_id=webhook["webhook_id"]).order_by("pk")
    assert list(verbs.values_list("verb", flat=True)) == [
        "webhook.create",
        "webhook.update",
        "webhook.update",
        "webhook.delete",
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": "gopher://example.com/"}, "url"),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "http://user:secret@example.com/"}, "url"),
        ({"url": "https://example.com/", "events": ["agent_exploded"]}, "events"),
        ({"url": "https://example.com/", "secret": "whsec_mine"}, "secret"),
        ({"url": "https://example.com/", "tenant": "other"}, "tenant"),
        ({"description": "no url"}, "url"),
    ],
)
def test_what_does_not_fit_is_refused(api: Api, fields: dict[str, Any], field: str) -> None:
    answer = api("POST", WEBHOOKS, fields, expect=422)
    assert list(answer["error"]["details"]) == [field]
    assert not WebhookEndpoint.unscoped.exists()


def test_a_tenant_has_so_many_webhooks_and_no_more(api: Api) -> None:
    for _ in range(MOST_ENDPOINTS):
        WebhookEndpoint.unscoped.create(tenant=api.tenant, url="https://example.com/")
    assert (
        api("POST", WEBHOOKS, {"url": "https://example.com/"}, expect=409)["error"]["type"]
        == "TooManyWebhooks"
    )


def test_others_do_not_find_it(api: Api, agent: Agent, receiver: Receiver, postman: Postman) -> None:
    webhook = api.create(receiver.url)
    happen(agent)
    [delivery] = api.deliveries(webhook)
    other = Api(make_tenant())
    there = f"{WEBHOOKS}/{webhook['webhook_id']}"
    for method, path, body in (
        ("GET", there, None),
        ("PATCH", there, {"url": "https://example.com/"}),
        ("DELETE", there, None),
        ("POST", f"{there}/rotate", None),
        ("GET", f"{there}/deliveries", None),
        ("POST", f"{WEBHOOKS}/deliveries/{delivery['delivery_id']}/replay", None),
    ):
        foreign = other(method, path, body, expect=404)
        unknown = other(method, path.replace(webhook["webhook_id"], str(uuid.uuid4())), body, expect=404)
        assert foreign["error"] == unknown["error"]
        other(method, path.replace(webhook["webhook_id"], "nothing"), body, expect=404)
    assert other("GET", WEBHOOKS)["items"] == []
    assert api.read(webhook)["url"] == receiver.url
    reader = Api(api.tenant, ("webhooks:read", "agents:write"))
    reader("GET", there)
    reader("DELETE", there, expect=403)
    Api(api.tenant, ("agents:read",))("GET", there, expect=403)


def test_a_webhook_hears_what_it_asked_for(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman
) -> None:
    api.create(receiver.url, events=["agent_deleted"])
    everything = api.create(receiver.url)
    happen(agent)
    round_of(postman)
    assert [request.verify(everything["secret"])["event"] for request in receiver.requests] == [
        "agent_updated"
    ]
    # A foreign tenant's events are nobody else's.
    Api(make_tenant()).create(receiver.url)
    happen(agent)
    round_of(postman)
    assert len(receiver.requests) == 2


def test_rotated_two_secrets_sign_for_a_day(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman
) -> None:
    webhook = api.create(receiver.url)
    rotated = api("POST", f"{WEBHOOKS}/{webhook['webhook_id']}/rotate")
    assert rotated["secret"] != webhook["secret"]
    happen(agent)
    round_of(postman)
    for secret in (webhook["secret"], rotated["secret"]):
        receiver.requests[0].verify(secret)
    day = datetime.timedelta(hours=24, seconds=1)
    until = WebhookEndpoint.unscoped.get().previous_until
    assert until is not None
    WebhookEndpoint.unscoped.update(previous_until=until - day)
    happen(agent)
    round_of(postman)
    receiver.requests[1].verify(rotated["secret"])
    with pytest.raises(WebhookVerificationError):
        receiver.requests[1].verify(webhook["secret"])
    third = api("POST", f"{WEBHOOKS}/{webhook['webhook_id']}/rotate")
    happen(agent)
    round_of(postman)
    receiver.requests[2].verify(third["secret"])
    receiver.requests[2].verify(rotated["secret"])


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 429, 500, 503])
def test_what_is_not_taken_is_tried_again(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman, status: int
) -> None:
    webhook = api.create(receiver.url)
    receiver.answers(status, b"no \0 thanks", Location=receiver.url)
    happen(agent)
    round_of(postman)
    assert len(receiver.requests) == 1  # not followed
    [delivery] = api.deliveries(webhook)
    assert delivery["status"] == "pending"
    assert delivery["attempts"][0]["status_code"] == status
    assert delivery["attempts"][0]["answer"] == "no \ufffd thanks"
    receiver.answers(204)
    round_of(postman)
    assert len(receiver.requests) == 1  # not yet
    advance(postman)
    [first, second] = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    [delivery] = api.deliveries(webhook)
    assert delivery["status"] == "delivered"
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [status, 204]


def test_the_schedule(api: Api, agent: Agent, receiver: Receiver, postman: Postman) -> None:
    webhook = api.create(receiver.url)
    receiver.answers(500)
    happen(agent)
    round_of(postman)
    for pause in PAUSES[1:]:
        row = Delivery.unscoped.get()
        assert row.status == "pending"
        last = DeliveryAttempt.unscoped.latest("pk")
        waits = (row.due_at - last.started_at).total_seconds()
        assert 0.89 * pause <= waits <= 1.11 * pause + 5
        advance(postman)
    [delivery] = api.deliveries(webhook)
    assert (delivery["status"], len(delivery["attempts"])) == ("dead", 10)
    assert delivery["next_attempt_at"] is None and delivery["finished_at"] is not None
    assert not api.read(webhook)["disabled"]
    assert len({next_pause(3) for _ in range(20)}) > 1  # nobody comes back in step
    assert [item["status"] for item in api.deliveries(webhook, "?status=dead")] == ["dead"]
    assert api.deliveries(webhook, "?status=delivered") == []
    api("GET", f"{WEBHOOKS}/{webhook['webhook_id']}/deliveries?status=lost", expect=422)


def test_an_agents_events_keep_their_order(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman
) -> None:
    webhook = api.create(receiver.url)
    other = make_agent(api.tenant)
    with tenant_scope(api.tenant.pk):
        execute(NoticeRelayAction(subject=str(other.pk)))
    advance(postman)
    receiver.requests.clear()
    receiver.answer = lambda request: (
        (500, {}, b"") if request.event["data"]["agent_id"] == str(agent.pk) else (200, {}, b"")
    )
    happen(agent, "first")
    happen(agent, "second")
    happen(other, "elsewhere")
    round_of(postman)
    round_of(postman)
    # The second waits for the first; another agent's event waits for neither.
    assert sorted(heard(receiver)) == ["elsewhere", "first"]
    receiver.answers(200)
    advance(postman)
    round_of(postman)
    assert heard(receiver)[2:] == ["first", "second"]
    assert {item["status"] for item in api.deliveries(webhook)} == {"delivered"}


def test_what_is_dead_holds_up_nothing(api: Api, agent: Agent, receiver: Receiver, postman: Postman) -> None:
    api.create(receiver.url)
    receiver.answers(500)
    happen(agent, "first")
    happen(agent, "second")
    for _ in PAUSES:
        advance(postman)
    receiver.answers(200)
    advance(postman)
    assert heard(receiver) == ["first"] * 10 + ["second"]


def heard(receiver: Receiver) -> list[str]:
    """The change that each request told."""
    return [request.event["data"]["changes"][0] for request in receiver.requests]


def die(agent: Agent, postman: Postman) -> None:
    """A delivery dies after its last attempt."""
    happen(agent)
    Delivery.unscoped.filter(status="pending").update(failures=len(PAUSES) - 1)
    advance(postman)


def test_five_deaths_in_a_row_disable_a_webhook(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman
) -> None:
    webhook = api.create(receiver.url)
    onlooker = api.create(receiver.url + "/other", events=["webhook_disabled"])
    receiver.answers(500)
    for _ in range(4):
        die(agent, postman)
    receiver.answers(200)
    happen(agent)
    round_of(postman)
    receiver.answers(500)
    for _ in range(4):
        die(agent, postman)
    assert not api.read(webhook)["disabled"]
    die(agent, postman)
    disabled = api.read(webhook)
    assert (disabled["disabled"], disabled["disabled_reason"]) == (True, "failing")
    sent = len(receiver.requests)
    happen(agent)
    round_of(postman)
    assert len(receiver.requests) == sent
    # Those who look after the tenant hear of it.
    receiver.answers(200)
    with tenant_scope(api.tenant.pk):
        execute(NoticeRelayAction(subject=webhook["webhook_id"]))
    advance(postman)
    event = receiver.requests[-1].verify(onlooker["secret"])
    assert (event["event"], event["service"]) == ("webhook_disabled", "agent-orchestrator")
    assert event["data"] == {"webhook_id": webhook["webhook_id"], "url": receiver.url, "reason": "failing"}
    assert Task.unscoped.filter(action="notice.relay", payload={"subject": webhook["webhook_id"]}).exists()


def test_five_days_without_success_disable_a_webhook(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman
) -> None:
    webhook = api.create(receiver.url)
    receiver.answers(500)
    happen(agent, "first")
    happen(agent, "second")
    round_of(postman)
    WebhookEndpoint.unscoped.update(failing_since=Now() - datetime.timedelta(days=5, seconds=1))
    advance(postman)
    assert api.read(webhook)["disabled_reason"] == "failing"
    assert {item["status"] for item in api.deliveries(webhook)} == {"dead"}


def test_410_disables_a_webhook_at_once(api: Api, agent: Agent, receiver: Receiver, postman: Postman) -> None:
    webhook = api.create(receiver.url)
    receiver.answers(410)
    happen(agent, "first")
    happen(agent, "second")
    round_of(postman)
    disabled = api.read(webhook)
    assert (disabled["disabled"], disabled["disabled_reason"]) == (True, "gone")
    assert [item["status"] for item in api.deliveries(webhook)] == ["dead", "dead"]
    assert Notice.unscoped.filter(event="webhook_disabled").count() == 1
    # Its owner repairs it, and replays what has died.
    [_, first] = api.deliveries(webhook)
    replay = f"{WEBHOOKS}/deliveries/{first['delivery_id']}/replay"
    assert api("POST", replay, expect=409)["error"]["type"] == "WebhookIsDisabled"
    api("PATCH", f"{WEBHOOKS}/{webhook['webhook_id']}", {"disabled": False})
    receiver.answers(200)
    api("POST", replay, expect=202)
    round_of(postman)
    assert heard(receiver) == ["first", "first"]


def test_replayed_it_goes_once_more_with_the_same_id(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman
) -> None:
    webhook = api.create(receiver.url)
    happen(agent)
    round_of(postman)
    [delivery] = api.deliveries(webhook)
    replay = f"{WEBHOOKS}/deliveries/{delivery['delivery_id']}/replay"
    again = api("POST", replay, expect=202)
    assert (again["status"], again["delivery_id"]) == ("pending", delivery["delivery_id"])
    receiver.answers(500)
    round_of(postman)
    receiver.answers(200)
    # One that waits goes now.
    api("POST", replay, expect=202)
    round_of(postman)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    [delivery] = api.deliveries(webhook)
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [200, 500, 200]
    assert delivery["status"] == "delivered"


def test_a_claim_is_one_postmans(api: Api, agent: Agent, receiver: Receiver, postman: Postman) -> None:
    api.create(receiver.url)
    happen(agent)
    [claimed] = postman._claim()
    second = Postman()
    assert second._claim() == []
    # The first is lost; the second takes over, and what the first says afterwards counts for nothing.
    Delivery.unscoped.update(claimed_until=Now() - datetime.timedelta(seconds=1))
    [again] = second._claim()
    receiver.answers(500)
    postman._carry(claimed)
    assert not DeliveryAttempt.unscoped.exists()
    receiver.answers(200)
    second._carry(again)
    assert Delivery.unscoped.get().status == "delivered"
    assert DeliveryAttempt.unscoped.count() == 1


def test_postmen_together_send_everything_once(api: Api, receiver: Receiver) -> None:
    api.create(receiver.url)
    agents = [make_agent(api.tenant) for _ in range(12)]
    for agent in agents:
        with tenant_scope(api.tenant.pk):
            execute(NoticeRelayAction(subject=str(agent.pk)))
        happen(agent)
    made = [Postman() for _ in range(3)]
    for postman in made:
        postman.start()
    try:
        wait_until(receiver, lambda: Delivery.unscoped.exclude(status="delivered").count() == 0)
    finally:
        for postman in made:
            postman.stop()
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(ids) == len(set(ids)) == Notice.unscoped.count()


def wait_until(receiver: Receiver, condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    while not condition():
        assert datetime.datetime.now(datetime.UTC) < deadline
        with receiver.came:
            receiver.came.wait(0.05)


def test_a_slow_endpoint_leaves_room_for_others(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    slow = Receiver()
    slow.answer = lambda request: ((go_on.wait(30) and 200) or 500, {}, b"")
    api.create(slow.url)
    other = Api(make_tenant())
    other.create(receiver.url)
    for agent in [make_agent(api.tenant) for _ in range(20)]:
        happen(agent)
    for agent in [make_agent(other.tenant) for _ in range(20)]:
        happen(agent)
    postman = Postman()
    postman.start()
    try:
        wait_until(receiver, lambda: len(receiver.requests) == 20)
        assert 1 <= len(slow.requests) <= module.MOST_OF_ENDPOINT
    finally:
        go_on.set()
        postman.stop()
        slow.close()


def test_a_secret_that_cannot_be_read_is_a_failed_attempt(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman, settings: Any
) -> None:
    webhook = api.create(receiver.url)
    happen(agent)
    settings.ENCRYPTION_KEYS = ["A" * 43 + "="]
    round_of(postman)
    assert not receiver.requests
    [delivery] = api.deliveries(webhook)
    assert delivery["attempts"][0]["error"] == "the secret of this webhook cannot be read"


def test_private_addresses_are_refused_when_it_is_time_to_connect(
    api: Api, agent: Agent, receiver: Receiver, postman: Postman, settings: Any
) -> None:
    """A name that was harmless when the webhook was made."""
    webhook = api.create(receiver.url.replace("127.0.0.1", "localhost"))
    settings.OUTBOUND_ALLOW = ()
    happen(agent)
    round_of(postman)
    assert not receiver.requests
    [delivery] = api.deliveries(webhook)
    [attempt] = delivery["attempts"]
    assert (attempt["status_code"], attempt["error"]) == (None, "not a public address")
