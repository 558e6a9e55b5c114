"""How often somebody may ask: one address, one session, one agent, one tenant.

The numbers are the tier's (`core.models.Tier`), and none of them is a number of the platform's, but
three: what belongs to no tenant is counted by address, and so is every token that does not verify.
Counting is done by `limits` in Valkey, for all processes together. Where nothing limits a tenant, nobody
is asked; where Valkey is away, everybody passes.

For threads: each count is a round trip.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast

import redis
from limits import RateLimitItemPerSecond
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from core import valkey
from core.audit import current_origin
from core.errors import NoobleError, RateLimited, TenantNotFound
from core.selectors import tenant_limits
from core.tenancy import tenant_scope

ROOT = "nooble:rates"
BURST = 100  # at once, of a limit that allows more than so many a minute

# What no tier says, a minute and address.
STRANGERS, STRANGERS_CONNECTS = 600, 300
REFUSED_TOKENS = 20


class Limit(RateLimitItemPerSecond):
    """So many (`amount`) in so many seconds (`get_expiry()`), under a name that clients are told."""

    @classmethod
    @functools.cache
    def of(cls, name: str, per_minute: int) -> Limit:
        """The rate as a window that is short enough for `BURST`, or as a minute."""
        seconds = min(60, max(1, math.ceil(60 * BURST / per_minute)))
        return cls(per_minute * seconds // 60, seconds, namespace=name)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where somebody stands with one limit: `left` of it now, more after `reset` seconds."""

    limit: Limit
    passes: bool
    left: int
    reset: float

    def refusal(self) -> RateLimited:
        details = {
            "limit": self.limit.namespace,
            "requests": self.limit.amount,
            "seconds": self.limit.get_expiry(),
        }
        return RateLimited(details=details, retry_after=max(1, math.ceil(self.reset)))


class _Storage(RedisStorage):
    """Over the house's client, which waits for a second and then for nobody."""

    STORAGE_SCHEME = None  # type: ignore[assignment]  # not to be found by its name

    def __init__(self) -> None:
        pool = valkey.client().connection_pool
        super().__init__("redis://", connection_pool=pool, key_prefix=ROOT)

    def get_connection(self, readonly: bool = False) -> valkey.Client:  # type: ignore[override]
        return valkey.client()


class _Counters(SlidingWindowCounterRateLimiter):
    """The library's sliding window: what was counted in the window before fades out in this one."""

    def take(self, limit: Limit, who: str) -> Standing:
        """Count one more, and say what is left, in one round trip. Raises redis.RedisError."""
        storage = cast(_Storage, self.storage)
        current = storage.prefixed_key(f"{{{limit.key_for(who)}}}")
        keys, seconds = (f"{current}/-1", current), limit.get_expiry()
        acquire, look = storage.lua_acquire_sliding_window, storage.lua_sliding_window
        pipeline = valkey.client().pipeline(transaction=False)
        pipeline.evalsha(acquire.sha, 2, *keys, limit.amount, seconds, 1)
        pipeline.evalsha(look.sha, 2, *keys, seconds)
        try:
            passes, window = pipeline.execute()
        except redis.exceptions.NoScriptError:
            for script in (acquire, look):
                valkey.client().script_load(script.script)
            return self.take(limit, who)
        return _standing(limit, bool(passes), *(max(0, int(number or 0)) for number in window))


def _standing(limit: Limit, passes: bool, before: int, before_ms: int, now: int, now_ms: int) -> Standing:
    """Of the counts in the two windows, and the milliseconds for which each is kept.

    This window is kept for one more after it ends; the one before is kept for as long as it counts.
    """
    whole = limit.get_expiry() * 1000
    left = max(0, limit.amount - before * before_ms // whole - now)
    ends = max(0, now_ms - whole)
    if now < limit.amount:
        # What fades of the window before makes room, one after the other.
        room = (limit.amount - now) * whole / before if before else 0.0
        reset = max(0.0, before_ms - room) if left == 0 else ends
    else:
        reset = ends
    return Standing(limit, passes, left, reset / 1000)


@functools.cache
def _counters() -> _Counters:
    return _Counters(_Storage())


@dataclass(slots=True)
class Counted:
    """What was counted of one request: whether a tenant's, and how it stands with each limit."""

    is_tenants: bool = False
    standings: list[Standing] = field(default_factory=list)


_counted: ContextVar[Counted | None] = ContextVar("counted", default=None)


@contextmanager
def counting() -> Iterator[Counted]:
    """Everything inside is one request."""
    counted = Counted()
    token = _counted.set(counted)
    try:
        yield counted
    finally:
        _counted.reset(token)


def _take(name: str, per_minute: int | None, who: str | None) -> None:
    """Raises RateLimited."""
    if per_minute is None or who is None:
        return
    try:
        standing = _counters().take(Limit.of(name, per_minute), who)
    except redis.RedisError:
        return  # nobody is turned away because we cannot count
    counted = _counted.get()
    if counted is not None:
        counted.standings.append(standing)
    if not standing.passes:
        raise standing.refusal()


def network_of(address: str | None) -> str | None:
    """Whom an address is taken for: one with IPv6 has 64 bits to himself. None for what is no address."""
    ip = _parsed(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((ip, 64), strict=False).network_address)
    return str(ip) if ip is not None else None


def _parsed(address: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


# --- Of tenants ------------------------------------------------------------------------------------


def count_request(tenant_id: str) -> None:
    """A request of the present origin that concerns the tenant. Raises RateLimited.

    Of a tenant that does not exist nothing is counted.
    """
    try:
        rates = tenant_limits(tenant_id).rates
    except TenantNotFound:
        return
    counted = _counted.get()
    if counted is not None:
        counted.is_tenants = True
    if rates is None:
        return
    if rates.ip_requests is not None:
        # First, and alone: who floods from one address uses up nothing of anybody else's.
        _take("ip", rates.ip_requests, _of(tenant_id, network_of(current_origin().ip)))
    _take("tenant", rates.tenant_requests, tenant_id)


@contextmanager
def request_of(tenant_id: str) -> Iterator[None]:
    """One request in the tenant's scope. Raises RateLimited."""
    count_request(tenant_id)
    with tenant_scope(tenant_id):
        yield


def count_question(tenant_id: str, agent_id: uuid.UUID, session_id: str | None = None) -> None:
    """A message to an agent, or a run without a session. Raises RateLimited."""
    rates = tenant_limits(tenant_id).rates
    if rates is None:
        return
    if session_id is not None:
        _take("session", rates.session_messages, f"{tenant_id}/{session_id}")
    _take("agent", rates.agent_requests, str(agent_id))


def count_connect(tenant_id: str) -> None:
    """A socket of the present origin that concerns the tenant. Raises RateLimited.

    Of a tenant that does not exist nothing is counted.
    """
    try:
        rates = tenant_limits(tenant_id).rates
    except TenantNotFound:
        return
    if rates is not None and rates.ip_connects is not None:
        _take("connects", rates.ip_connects, _of(tenant_id, network_of(current_origin().ip)))


def _of(tenant_id: str, network: str | None) -> str | None:
    """An address has its bucket with each tenant: what one tenant's page does is not another's trouble."""
    return f"{tenant_id}/{network}" if network is not None else None


# --- Of nobody -------------------------------------------------------------------------------------


def count_stranger() -> None:
    """A request of the present origin that concerns no tenant. Raises RateLimited."""
    _take("ip", STRANGERS, _stranger())


def count_strangers_connect() -> None:
    """A socket of the present origin that concerns no tenant. Raises RateLimited."""
    _take("connects", STRANGERS_CONNECTS, _stranger())


def _stranger() -> str | None:
    """The present origin; None for this machine itself, or a proxy on it that nobody has told us of:
    there is no telling how many people that is.
    """
    ip = _parsed(current_origin().ip)
    return None if ip is None or ip.is_loopback else network_of(str(ip))


def told_to(error: Exception) -> Exception:
    """What a request gets that ended in this error: another one, where no tenant was found and the
    address has asked too often.
    """
    counted = _counted.get()
    if counted is None or counted.is_tenants or isinstance(error, RateLimited):
        return error
    try:
        count_stranger()
    except RateLimited as limited:
        return limited
    return error


def token_refused(error: NoobleError) -> NoobleError:
    """What whoever shows a token that does not verify gets: the error, but RateLimited after too many.

    Of the present origin, whatever tenant it is about; a token that verifies is never counted.
    """
    try:
        _take("tokens", REFUSED_TOKENS, network_of(current_origin().ip))
    except RateLimited as limited:
        return limited
    return error
