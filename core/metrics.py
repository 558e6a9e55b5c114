"""What the platform counts, over all its processes, for one scrape.

The hot path adds to numbers in memory, and that is all. A thread of each process takes them to Valkey
every two seconds, where all processes' are one sum; `/metrics` reads it there. A process that is killed
takes two seconds of counts with it. While Valkey is away the counts wait here; nobody waits for them.

What is (how many wait, how many sockets are open) is no count: it is asked for at the scrape.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import os
import secrets
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from core import valkey

logger = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
ROOT = "nooble:metrics"
FLUSH_SECONDS = 2.0
SLICE = 1_000  # numbers in one batch: the script holds up Valkey no longer than a millisecond or two
KEPT_SECONDS = 30 * 24 * 3600  # of a tenant that does nothing
SEEN_SECONDS = 24 * 3600
MOST_TENANTS = 1_000  # in one scrape: those that did something last
BETWEEN = "\t"  # label values in a field; none of them may hold one

SHORT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)

_script = (Path(__file__).parent / "metrics.lua").read_text()

# (tenant or "", field): amount
_lock = threading.Lock()
_counted: dict[tuple[str, str], float] = {}


class Counter:
    """A number that grows. Values of labels come from closed lists of words: each makes a series for good."""

    def __init__(self, name: str, meaning: str, *labels: str, per_tenant: bool = False) -> None:
        """`per_tenant` ones are kept for each tenant as well, which makes a family of its own."""
        self.name = name
        self.meaning = meaning
        self.labels = labels
        self.per_tenant = per_tenant
        FAMILIES.append(self)

    def add(self, *values: str, by: float = 1.0, tenant_id: str = "") -> None:
        field = BETWEEN.join((self.name, *values))
        with _lock:
            _counted[("", field)] = _counted.get(("", field), 0.0) + by
            if tenant_id:
                _counted[(tenant_id, field)] = _counted.get((tenant_id, field), 0.0) + by

    def family(self, found: Fields, *, of_tenants: bool = False) -> Metric:
        more = ("tenant",) if of_tenants else ()
        name = self.name.replace("nooble_", "nooble_tenant_", 1) if of_tenants else self.name
        family = CounterMetricFamily(name, self.meaning, labels=(*more, *self.labels))
        for tenant, values, amount in found.get(self.name, ()):
            if len(values) == len(self.labels):
                family.add_metric((tenant, *values) if of_tenants else values, amount)
        return family


class Histogram:
    """How long things take, in seconds; `bounds` are the buckets' upper ends."""

    per_tenant = False

    def __init__(self, name: str, meaning: str, *labels: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.meaning = meaning
        self.labels = labels
        self._bounds = tuple(bounds)
        self._words = (*(f"{bound:g}" for bound in bounds), "+Inf")
        FAMILIES.append(self)

    def observe(self, seconds: float, *values: str) -> None:
        series = BETWEEN.join((self.name, *values))
        bucket = ("", f"{series}{BETWEEN}{self._words[bisect_left(self._bounds, seconds)]}")
        total = ("", f"{series}{BETWEEN}sum")
        with _lock:
            _counted[bucket] = _counted.get(bucket, 0.0) + 1.0
            _counted[total] = _counted.get(total, 0.0) + max(0.0, seconds)

    def family(self, found: Fields, *, of_tenants: bool = False) -> Metric:
        family = HistogramMetricFamily(self.name, self.meaning, labels=self.labels)
        series: dict[tuple[str, ...], dict[str, float]] = {}
        for _, values, amount in found.get(self.name, ()):
            if len(values) == len(self.labels) + 1:
                series.setdefault(values[:-1], {})[values[-1]] = amount
        for values, amounts in series.items():
            counts = itertools.accumulate(amounts.get(word, 0.0) for word in self._words)
            buckets = list(zip(self._words, counts, strict=True))
            family.add_metric(values, buckets, amounts.get("sum", 0.0))
        return family


FAMILIES: list[Counter | Histogram] = []
# family: (tenant or "", the values of its labels, amount)
Fields = dict[str, list[tuple[str, tuple[str, ...], float]]]

REQUESTS = Counter("nooble_http_requests", "HTTP requests that were answered", "status")
REQUEST_SECONDS = Histogram(
    "nooble_http_request_seconds",
    "From a request's coming to its answer, or to a stream's begin",
    bounds=SHORT,
)
REFUSALS = Counter("nooble_http_refusals", "HTTP requests that were refused or failed, by the error", "type")
SOCKETS_CLOSED = Counter(
    "nooble_sockets_closed", "Sockets that the server closed, by its code; 4409 are slow readers", "code"
)
STREAMS_CUT = Counter("nooble_streams_cut", "Event streams that were cut because nobody read them")

ACCEPTED = Counter("nooble_tasks_accepted", "Tasks that were written", "action", per_tenant=True)
FINISHED = Counter("nooble_tasks_finished", "Tasks that ended", "action", "status", per_tenant=True)
ATTEMPTS = Counter(
    "nooble_tasks_attempts_repeated",
    "Attempts that ended without a result so that another follows: worker_lost is a take-over",
    "reason",
)
WAITED_SECONDS = Histogram(
    "nooble_task_queue_seconds", "From a task's row to its first claim", "domain", bounds=LONG
)
RUN_SECONDS = Histogram(
    "nooble_task_run_seconds", "From an attempt's claim to its end", "action", bounds=LONG
)
FIRST_TOKEN_SECONDS = Histogram(
    "nooble_first_token_seconds", "From a run's row to the first token of its answer", bounds=LONG
)

PROVIDER_CALLS = Counter(
    "nooble_provider_calls", "Calls of model providers: ok, cancelled, or the error", "provider", "outcome"
)
TOKENS = Counter("nooble_tokens", "Tokens of settled calls", "kind", "accuracy", per_tenant=True)
COST = Counter("nooble_cost_usd", "What settled calls cost, in US dollars", "accuracy", per_tenant=True)
SETTLED_CALLS = Counter(
    "nooble_provider_calls_settled",
    "Calls that came as far as to a first token, by what is known of their tokens",
    "accuracy",
    per_tenant=True,
)
WEBHOOK_ATTEMPTS = Counter(
    "nooble_webhook_attempts", "Attempts to deliver a webhook: ok or failed", "outcome"
)


# --- To Valkey -------------------------------------------------------------------------------------


class Flusher:
    """Takes what this process has counted to the sums; each batch is added once."""

    def __init__(self) -> None:
        self._process = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._numbers = itertools.count(1)
        self._under_way: list[tuple[int, list[Any]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """What is counted by now is flushed, if Valkey is there."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            self._try()
        self._try()

    def _try(self) -> None:
        try:
            self.flush()
        except redis.RedisError:
            pass  # the next round tells it; who needs Valkey says that it is away
        except Exception:
            logger.exception("counts are not told")

    def flush(self) -> None:
        """Raises redis.RedisError; nothing is lost then."""
        global _counted
        if not self._under_way:
            with _lock:
                counted, _counted = _counted, {}
            entries = iter(counted.items())
            while batch := list(itertools.islice(entries, SLICE)):
                words = [word for (tenant, field), amount in batch for word in (tenant, field, repr(amount))]
                self._under_way.append((next(self._numbers), words))
        while self._under_way:
            number, words = self._under_way[0]
            _add()(args=[ROOT, self._process, number, KEPT_SECONDS, SEEN_SECONDS, *words])
            del self._under_way[0]


@functools.cache
def _add() -> Any:
    return valkey.client().register_script(_script)


_flusher: Flusher | None = None


def start(**_: object) -> None:
    """Tell from now on what this process counts: the web and the workers do."""
    global _flusher
    if _flusher is None:
        _flusher = Flusher()
        _flusher.start()


# --- For a scrape ----------------------------------------------------------------------------------


def totals() -> Iterator[Metric]:
    """Every family, over all processes and tenants. Raises redis.RedisError."""
    found = _fields([("", valkey.client().hgetall(f"{ROOT}:all"))])
    return (family.family(found) for family in FAMILIES)


def of_tenants(only: Sequence[str] | None = None) -> Iterator[Metric]:
    """The same by tenant, as far as it is kept so: of these, or of those that did something last.

    Raises redis.RedisError.
    """
    client = valkey.client()
    if only is None:
        last: Any = client.zrevrange(f"{ROOT}:tenants", 0, MOST_TENANTS - 1)
        only = [tenant.decode() for tenant in last]
    pipeline = client.pipeline(transaction=False)
    for tenant in only:
        pipeline.hgetall(f"{ROOT}:of:{tenant}")
    found = _fields(zip(only, pipeline.execute() if only else (), strict=True))
    return (family.family(found, of_tenants=True) for family in FAMILIES if family.per_tenant)


def _fields(hashes: Iterable[tuple[str, Any]]) -> Fields:
    found: Fields = {}
    for tenant, told in hashes:
        for field, amount in told.items():
            name, *values = field.decode().split(BETWEEN)
            found.setdefault(name, []).append((tenant, tuple(values), float(amount)))
    return found


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def exposed(families: Iterable[Metric]) -> bytes:
    """The families as Prometheus reads them (`CONTENT_TYPE`)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(list(families)))
    return generate_latest(registry)
