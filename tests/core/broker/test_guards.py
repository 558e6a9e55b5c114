"""Each guard is seen to matter: the property holds with it, and does not when it is cut out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from kombu import Connection
from kombu.transport.redis import MultiChannelPoller

from core.broker import scripts
from core.broker.transport import Channel, Poller
from tests.core.broker import checks
from tests.core.broker.broker import Broker

Check = Callable[[Broker], None]

# Script, the guard's text, what stands there without it, the property that it holds.
GUARDS: list[tuple[str, str, str, Check]] = [
    ("lease", "if cap > 0 and number_at(", "if false and number_at(", checks.cap_holds),
    (
        "lease",
        "if cap == 0 or running < cap then",
        "if true then",
        checks.capped_tenants_leave_the_ring,
    ),
    ("reap", "'-inf', now_ms(), 'BYSCORE'", "'-inf', 0, 'BYSCORE'", checks.dead_workers_messages_come_back),
    ("reap", "'-inf', now_ms(), 'BYSCORE'", "'-inf', '+inf', 'BYSCORE'", checks.living_workers_keep_theirs),
    ("tidy", "then wake(root, domain, tenant) end", "then end", checks.sleepers_wake),
    (
        "settle",
        "local key = root .. ':w:' .. worker",
        "worker = string.match(redis.call('HGET', root .. ':held', 'c-' .. tag), '^[^|]+') "
        "local key = root .. ':w:' .. worker",
        checks.nobody_ends_anothers_lease,
    ),
    ("settle", "  wake(root, lease.domain, lease.tenant)", "", checks.ends_free_the_slot),
    (
        "settle",
        "  note(root, 'SADD', entry)\n  redis.call(at_head",
        "  redis.call(at_head",
        checks.what_waits_is_found,
    ),
    ("put", "  note(root, 'SADD', entry)\nelse", "else", checks.what_waits_is_found),
    (
        "lease",
        "redis.call('HSET', root .. ':held', correlation, worker.name .. '|' .. tag)",
        "",
        checks.what_is_leased_is_found,
    ),
    ("lease", "redis.call('SREM', root .. ':waiting', correlation)", "", checks.what_is_done_is_not_found),
    ("settle", "redis.call('HDEL', root .. ':held', correlation)", "", checks.what_is_done_is_not_found),
    ("purge", "      note(root, 'SREM', entry)", "", checks.what_is_purged_is_not_found),
    (
        "purge",
        "note(root, 'SREM', string.match(member, '^[^|]*|[^|]*|(.*)$'))",
        "",
        checks.what_is_purged_is_not_found,
    ),
    (
        "drop",
        "wake(root, lease.domain, lease.tenant)\nreturn 1",
        "return 1",
        checks.what_is_dropped_frees_its_slot,
    ),
]


def cut(broker: Broker, name: str, guard: str, without: str) -> None:
    """Load the script again, with the guard's text replaced where it stands last but in comments."""
    common, own = ((scripts._FOLDER / f"{file}.lua").read_text() for file in ("common", name))
    text = scripts._CAPS + common + own
    assert guard in text, "the guard has moved: this test must follow"
    setattr(broker.scripts, name, broker.client.register_script(text.replace(guard, without)))


@pytest.mark.parametrize(
    "check", dict.fromkeys(guard[3] for guard in GUARDS), ids=lambda check: check.__name__
)
def test_the_property_holds(check: Check) -> None:
    check(Broker())


@pytest.mark.parametrize(("name", "guard", "without", "check"), GUARDS)
def test_without_its_guard_the_property_is_lost(name: str, guard: str, without: str, check: Check) -> None:
    broker = Broker()
    cut(broker, name, guard, without)
    with pytest.raises(AssertionError):
        check(broker)


def test_without_the_rotation_a_flooded_domain_starves_the_other(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Channel._brpop_start

    def unrotated(self: Channel, *args: Any, **kwargs: Any) -> None:
        self._waiting_for = ""
        start(self, *args, **kwargs)

    monkeypatch.setattr(Channel, "_brpop_start", unrotated)
    with pytest.raises(AssertionError):
        checks.flood_starves_no_domain(connection)


def test_without_the_put_back_a_paused_worker_keeps_a_tenant_asleep(
    connection: Connection, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.broker.keeper.REPAIR_SECONDS", 60)
    monkeypatch.setattr(Poller, "on_readable", MultiChannelPoller.on_readable)
    monkeypatch.setattr(Poller, "_update_brpop_polling", MultiChannelPoller._update_brpop_polling)
    with pytest.raises(AssertionError):
        checks.paused_reply_wakes_the_tenant(connection, valkey)
