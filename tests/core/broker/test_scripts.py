"""Random histories of puts, leases, acks, deaths and repairs against a small model."""

from __future__ import annotations

from collections import deque

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.core.broker.broker import RANKS, Broker

TENANTS = st.sampled_from(["a", "b", "c"])
WORKERS = st.sampled_from(["w1", "w2"])
CAPS = {"a": 1, "b": 2, "c": 3}


class Histories(RuleBasedStateMachine):
    """Nothing is lost, nothing is leased twice, caps and priorities hold, nobody sleeps for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        for tenant, cap in CAPS.items():
            self.broker.limit(tenant, 1, cap)
        self.made = 0
        # Groups, oldest first: what a dead worker had comes back in any order.
        self.waiting = {tenant: {rank: deque[set[str]]() for rank in RANKS.values()} for tenant in CAPS}
        self.leased: dict[str, tuple[str, str, int]] = {}  # tag -> worker, tenant, rank
        self.popped: list[tuple[str, float]] = []
        self.done: set[str] = set()

    def work(self, tenant: str) -> int:
        return sum(len(group) for queue in self.waiting[tenant].values() for group in queue)

    def running(self, tenant: str) -> int:
        return sum(lease[1] == tenant for lease in self.leased.values())

    @rule(tenant=TENANTS, priority=st.sampled_from(sorted(RANKS)))
    def put(self, tenant: str, priority: str) -> None:
        self.made += 1
        self.broker.put(f"m{self.made}", tenant, priority)
        self.waiting[tenant][RANKS[priority]].append({f"m{self.made}"})

    @rule()
    def pop(self) -> None:
        if popped := self.broker.pop():
            self.popped.append(popped)

    @precondition(lambda self: self.popped)
    @rule(worker=WORKERS)
    def lease(self, worker: str) -> None:
        tenant, start = self.popped.pop(0)
        tag = self.broker.lease(tenant, start, worker)
        if not self.work(tenant) or self.running(tenant) >= CAPS[tenant]:
            assert tag is None
            return
        # All were put within a moment, so no rank has aged into another.
        rank = min(rank for rank, queue in self.waiting[tenant].items() if queue)
        group = self.waiting[tenant][rank][0]
        assert tag in group
        group.remove(tag)
        if not group:
            self.waiting[tenant][rank].popleft()
        self.leased[tag] = (worker, tenant, rank)

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), to=st.sampled_from(["", "", "head", "dead"]))
    def settle(self, data: st.DataObject, to: str) -> None:
        tag = data.draw(st.sampled_from(sorted(self.leased)))
        worker, tenant, rank = self.leased.pop(tag)
        other = "w2" if worker == "w1" else "w1"
        assert not self.broker.settle(tag, to, other), "somebody else's lease"
        assert self.broker.settle(tag, to, worker)
        assert not self.broker.settle(tag, to, worker), "twice"
        if to == "head":
            self.waiting[tenant][rank].appendleft({tag})
        else:
            self.done.add(tag)

    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        lost = [tag for tag, lease in self.leased.items() if lease[0] == worker]
        self.broker.expire(worker)
        assert self.broker.reap() == len(lost)
        back: dict[tuple[str, int], set[str]] = {}
        for tag in lost:
            _, tenant, rank = self.leased.pop(tag)
            back.setdefault((tenant, rank), set()).add(tag)
        for (tenant, rank), group in back.items():
            self.waiting[tenant][rank].appendleft(group)

    @rule()
    def lose_what_was_popped(self) -> None:
        """A worker dies between the ring's reply and its lease."""
        self.popped.clear()

    @rule()
    def repair(self) -> None:
        self.broker.repair()
        awake = {tenant for tenant, _ in self.popped}
        awake |= {
            member.decode() for member in self.broker.client.zrange(f"{self.broker.root}:agent:ring", 0, -1)
        }
        for tenant in CAPS:
            if self.work(tenant) and self.running(tenant) < CAPS[tenant]:
                assert tenant in awake

    @invariant()
    def counts_agree(self) -> None:
        for tenant in CAPS:
            assert self.broker.count("waiting", tenant) == self.work(tenant)
            assert self.broker.count("running", tenant) == self.running(tenant) <= CAPS[tenant]
        total = int(self.broker.client.get(f"{self.broker.root}:agent:total") or 0)
        assert total == sum(map(self.work, CAPS))
        assert self.made == total + len(self.leased) + len(self.done)


TestHistories = Histories.TestCase
TestHistories.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)
