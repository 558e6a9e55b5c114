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
    """Nothing is lost, nothing is leased twice, caps and priorities hold, nobody sleeps for ever.

    And whoever asks for a message is told whether it is there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        for tenant, cap in CAPS.items():
            self.broker.limit(tenant, 1, cap)
        self.made = 0
        # Groups, oldest first: what a dead worker had comes back in any order.
        self.waiting = {tenant: {rank: deque[set[str]]() for rank in RANKS.values()} for tenant in CAPS}
        self.leased: dict[str, tuple[str, str, int]] = {}  # tag -> worker, tenant, rank
        self.delayed: dict[str, tuple[str, int]] = {}  # tag -> tenant, rank
        self.popped: list[tuple[str, float]] = []
        self.done: set[str] = set()
        self.correlation: dict[str, str] = {}  # of every tag
        self.twins: set[str] = set()  # correlations that several messages had
        self.holder: dict[str, str] = {}  # correlation -> the tag that was leased last

    def work(self, tenant: str) -> int:
        return sum(len(group) for queue in self.waiting[tenant].values() for group in queue)

    def running(self, tenant: str) -> int:
        return sum(lease[1] == tenant for lease in self.leased.values())

    def made_tag(self, data: st.DataObject) -> str:
        """Of a message more; now and then it is about what another one is about already."""
        self.made += 1
        tag = f"m{self.made}"
        self.correlation[tag] = f"c-{tag}"
        if self.made > 1 and data.draw(st.integers(0, 4)) == 0:
            other = data.draw(st.sampled_from(sorted(set(self.correlation) - {tag})))
            self.correlation[tag] = self.correlation[other]
            self.twins.add(self.correlation[tag])
        return tag

    def ended(self, tag: str) -> None:
        """Its lease has."""
        if self.holder.get(self.correlation[tag]) == tag:
            del self.holder[self.correlation[tag]]

    @rule(tenant=TENANTS, priority=st.sampled_from(sorted(RANKS)), data=st.data())
    def put(self, tenant: str, priority: str, data: st.DataObject) -> None:
        tag = self.made_tag(data)
        self.broker.put(tag, tenant, priority, correlation=self.correlation[tag])
        self.waiting[tenant][RANKS[priority]].append({tag})

    @rule(tenant=TENANTS, priority=st.sampled_from(sorted(RANKS)), data=st.data())
    def put_for_later(self, tenant: str, priority: str, data: st.DataObject) -> None:
        tag = self.made_tag(data)
        due = self.broker.now_ms() + 1_000
        self.broker.put(tag, tenant, priority, due=due, correlation=self.correlation[tag])
        self.delayed[tag] = (tenant, RANKS[priority])

    @rule()
    def let_delayed_join(self) -> None:
        assert self.broker.let_delayed_join() == len(self.delayed)
        groups: dict[tuple[str, int], set[str]] = {}
        for tag, place in self.delayed.items():
            groups.setdefault(place, set()).add(tag)
        for (tenant, rank), group in groups.items():
            self.waiting[tenant][rank].append(group)
        self.delayed.clear()

    @rule(tenant=TENANTS, priority=st.sampled_from(sorted(RANKS)))
    def purge_a_queue(self, tenant: str, priority: str) -> None:
        rank = RANKS[priority]
        gone = {tag for group in self.waiting[tenant][rank] for tag in group}
        gone |= {tag for tag, place in self.delayed.items() if place == (tenant, rank)}
        assert self.broker.purge(tenant, priority) == len(gone)
        self.waiting[tenant][rank].clear()
        self.delayed = {tag: place for tag, place in self.delayed.items() if tag not in gone}
        self.done |= gone

    @rule(tenant=TENANTS)
    def purge_a_tenant(self, tenant: str) -> None:
        gone = {tag for queue in self.waiting[tenant].values() for group in queue for tag in group}
        assert self.broker.purge(tenant) == len(gone)
        for queue in self.waiting[tenant].values():
            queue.clear()
        self.done |= gone

    @rule()
    def purge_what_is_delayed(self) -> None:
        assert self.broker.purge("") == len(self.delayed)
        self.done |= set(self.delayed)
        self.delayed.clear()

    @precondition(lambda self: self.correlation)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        correlation = data.draw(st.sampled_from(sorted(set(self.correlation.values()))))
        tag = self.holder.get(correlation)
        assert self.broker.drop(correlation) == (tag is not None)
        if tag is not None:
            worker, _, _ = self.leased.pop(tag)
            self.ended(tag)
            self.done.add(tag)
            assert not self.broker.settle(tag, "", worker), "its worker finds nothing"

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
        self.holder[self.correlation[tag]] = tag

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), to=st.sampled_from(["", "", "head", "dead"]))
    def settle(self, data: st.DataObject, to: str) -> None:
        tag = data.draw(st.sampled_from(sorted(self.leased)))
        worker, tenant, rank = self.leased.pop(tag)
        self.ended(tag)
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
            self.ended(tag)
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
        assert self.made == total + len(self.leased) + len(self.delayed) + len(self.done)

    @invariant()
    def what_is_there_is_found_and_nothing_else(self) -> None:
        if not self.correlation:
            return
        there = {name for tag, name in self.correlation.items() if tag not in self.done}
        found = self.broker.present(set(self.correlation.values()))
        assert found <= there
        assert found - self.twins == there - self.twins
        assert set(self.holder) <= found
        kept = self.broker.client.smembers(f"{self.broker.root}:waiting")
        assert {name.decode() for name in kept} <= there, "nothing is left behind"


TestHistories = Histories.TestCase
TestHistories.settings = hypothesis_settings(max_examples=150, stateful_step_count=60, deadline=None)
