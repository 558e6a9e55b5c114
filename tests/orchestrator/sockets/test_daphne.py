"""What Daphne's transport tells of a client that does not keep up."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.abstract import FileDescriptor

from orchestrator.daphne import MAX_UNANSWERED, PROGRESS, SessionProtocol, TransportLink

KB = 1024


class Selector:
    """Remembers what is read from."""

    def __init__(self) -> None:
        self.reads = True

    def addReader(self, transport: Any) -> None:
        self.reads = True

    def removeReader(self, transport: Any) -> None:
        self.reads = False

    def addWriter(self, transport: Any) -> None:
        pass

    def removeWriter(self, transport: Any) -> None:
        pass


class Wire(FileDescriptor):
    """Twisted's transport, over a network that takes as much as the test says."""

    connected = 1

    def __init__(self) -> None:
        self.selector = Selector()
        super().__init__(self.selector)
        self.room = 0

    def writeSomeData(self, data: bytes) -> int:
        taken = min(len(data), self.room)
        self.room -= taken
        return taken

    def take(self, size: int) -> None:
        self.room = size
        while self.room and (self.dataBuffer or self._tempDataBuffer):
            self.doWrite()

    def resumeProducing(self) -> None:
        self.startReading()

    def pauseProducing(self) -> None:
        self.stopReading()

    def startReading(self) -> None:
        self.reactor.addReader(self)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def link(wire: Wire) -> TransportLink:
    wire.registerProducer(SimpleNamespace(), True)  # the HTTP channel that was there before
    return TransportLink(SimpleNamespace(transport=wire, state=0, STATE_OPEN=SessionProtocol.STATE_OPEN))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


async def test_a_link_is_full_until_everything_was_taken(wire: Wire, link: TransportLink) -> None:
    wire.write(b"x" * 10 * KB)
    assert not link.full
    wire.write(b"x" * 90 * KB)
    assert link.full
    waiting = asyncio.ensure_future(link.drained())
    wire.take(99 * KB)
    await asyncio.sleep(0)
    assert link.full and not waiting.done()
    wire.take(KB)
    await waiting
    assert not link.full


async def test_a_link_that_is_lost_is_waited_for_by_nobody(wire: Wire, link: TransportLink) -> None:
    wire.write(b"x" * 100 * KB)
    waiting = asyncio.ensure_future(link.drained())
    await asyncio.sleep(0)
    link.stopProducing()
    await waiting


def test_who_takes_nothing_stalls(wire: Wire, link: TransportLink, clock: SimpleNamespace) -> None:
    wire.write(b"x" * 100 * KB)
    clock.now += 9
    assert not link.is_stalled(10)
    clock.now += 2
    assert link.is_stalled(10)


def test_who_takes_next_to_nothing_stalls(wire: Wire, link: TransportLink, clock: SimpleNamespace) -> None:
    wire.write(b"x" * 100 * KB)
    for _ in range(11):
        assert not link.is_stalled(10)
        clock.now += 1
        wire.take(KB)
    assert link.is_stalled(10)


def test_who_reads_slowly_does_not_stall(wire: Wire, link: TransportLink, clock: SimpleNamespace) -> None:
    wire.write(b"x" * 1_000 * KB)
    while link.full:
        assert not link.is_stalled(10)
        clock.now += 1
        wire.take(PROGRESS // 9)
    assert not link.is_stalled(10)


def test_a_client_is_read_from_only_while_it_keeps_up(wire: Wire, link: TransportLink) -> None:
    wire.write(b"x" * 100 * KB)
    assert not link.reads and not wire.selector.reads
    wire.take(100 * KB)
    assert link.reads and wire.selector.reads


def test_a_client_is_read_from_only_while_its_frames_are_taken(wire: Wire, link: TransportLink) -> None:
    for _ in range(MAX_UNANSWERED - 1):
        link.came()
    assert wire.selector.reads
    link.came()
    assert not link.reads and not wire.selector.reads
    wire.write(b"x" * 100 * KB)
    link.took()
    assert not wire.selector.reads
    wire.take(100 * KB)
    assert link.reads and wire.selector.reads
