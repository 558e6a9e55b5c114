"""The session log: one script gives each event its place, or refuses it."""

from __future__ import annotations

import asyncio
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core import aio, valkey
from core.events import log
from core.events.base import Closes, Event, with_seq
from core.events.groups import session_name

TASK = uuid.uuid4()


class Note(Event):
    event: str = "note"
    service: Any = "agent-execution"


class RunEnd(Note):
    closes: ClassVar[Closes] = "run"


class TaskEnd(Note):
    closes: ClassVar[Closes] = "task"


KINDS: dict[str, type[Note]] = {"": Note, "run": RunEnd, "task": TaskEnd}


@pytest.fixture
def session() -> str:
    return new_session()


def new_session() -> str:
    return f"s-{uuid.uuid4().hex}"


def event(session: str, closes: str = "", task_id: uuid.UUID | None = TASK, data: Any = None) -> Note:
    return KINDS[closes](
        task_id=task_id, global_task_id=task_id, tenant_id="demo", session_id=session, data=data
    )


def append(
    session: str, closes: str = "", attempt: int | None = None, task_id: uuid.UUID | None = TASK
) -> int | None:
    return aio.run(log.append(event(session, closes, task_id), attempt, floor=0))


def lose(session: str) -> None:
    """Valkey forgets the session, as after a day of silence."""
    assert valkey.client().delete(*keys_of(session))


def keys_of(session: str) -> list[str]:
    name = session_name("demo", session)
    return [log._log(name), log._marks(name), f"nooble:closed:{{{name}}}", log._answer(name)]


def seqs(session: str, after: int = 0, limit: int = 10_000) -> list[int]:
    return [seq for seq, _ in aio.run(log.read(session_name("demo", session), after, limit))]


def kept_seqs(session: str) -> list[int]:
    """What the log holds, with or without holes."""
    entries: Any = valkey.client().xrange(log._log(session_name("demo", session)))
    return [int(entry_id.split(b"-")[0]) for entry_id, _ in entries]


def hole(session: str, after: int) -> bool:
    try:
        seqs(session, after)
    except log.Hole:
        return True
    return False


def test_seqs_count_from_one(session: str) -> None:
    assert [append(session) for _ in range(3)] == [1, 2, 3]
    assert seqs(session) == [1, 2, 3]
    name = session_name("demo", session)
    assert aio.run(log.last_seq(name)) == log.last_seq_sync(name) == 3


def test_a_session_that_nobody_heard_of_has_no_tail(session: str) -> None:
    name = session_name("demo", session)
    assert aio.run(log.last_seq(name)) is None
    assert log.last_seq_sync(name) is None
    assert aio.run(log.read(session_name("demo", session), 0)) == []


def test_sessions_count_for_themselves(session: str) -> None:
    append(session)
    assert append(f"{session}-other") == 1


def test_bodies_are_kept_byte_for_byte(session: str) -> None:
    entry = event(session, data={"text": "¿Qué tal? 🎈\n\u2028\x00"})
    aio.run(log.append(entry, floor=0))
    [(seq, body)] = aio.run(log.read(session_name("demo", session), 0))
    assert (seq, body) == (1, entry.body())
    assert with_seq(body, seq) == '{"seq":1,' + entry.body().decode()[1:]


def test_reading_goes_on_after_a_seq_and_stops_at_the_limit(session: str) -> None:
    for _ in range(5):
        append(session)
    assert seqs(session, after=2) == [3, 4, 5]
    assert seqs(session, after=2, limit=2) == [3, 4]
    assert seqs(session, after=5) == []


def test_fifty_appenders_at_once_leave_no_hole_and_no_twin(session: str) -> None:
    async def many() -> list[int | None]:
        tasks = [uuid.uuid4() for _ in range(50)]
        appends = [log.append(event(session, task_id=task), 1, floor=0) for task in tasks for _ in range(4)]
        return await asyncio.gather(*appends)

    given_seqs = aio.run(many())
    assert sorted(seq or 0 for seq in given_seqs) == list(range(1, 201))
    assert seqs(session) == list(range(1, 201))


def test_appenders_in_several_processes_loops_share_the_count(session: str) -> None:
    """Each thread brings a loop, and so connections, of its own."""
    barrier = threading.Barrier(4)

    def some() -> list[int | None]:
        async def run() -> list[int | None]:
            try:
                return [await log.append(event(session), floor=0) for _ in range(25)]
            finally:
                await valkey.async_client().aclose(close_connection_pool=True)

        barrier.wait(timeout=30)
        return asyncio.run(run())

    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(some) for _ in range(4)]
        given_seqs = [seq for run in runs for seq in run.result()]
    assert sorted(seq or 0 for seq in given_seqs) == list(range(1, 101))


def test_an_older_attempt_is_refused_once_a_newer_was_heard(session: str) -> None:
    assert append(session, attempt=1) == 1
    assert append(session, attempt=2) == 2
    assert append(session, attempt=1) is None
    assert append(session, "run", attempt=1) is None
    assert append(session, "task", attempt=1) is None
    assert append(session, attempt=2) == 3
    assert append(session, attempt=10) == 4  # as numbers: "10" < "2" as text
    assert append(session, attempt=9) is None
    assert seqs(session) == [1, 2, 3, 4]


def test_a_refused_end_closes_nothing(session: str) -> None:
    append(session, attempt=2)
    assert append(session, "run", attempt=1) is None
    assert append(session, attempt=2) == 2
    assert append(session, "run", attempt=2) == 3


def test_attempts_of_other_tasks_do_not_count(session: str) -> None:
    append(session, attempt=5)
    assert append(session, attempt=1, task_id=uuid.uuid4()) == 2


def test_a_run_ends_once(session: str) -> None:
    assert append(session, "run", attempt=1) == 1
    assert append(session, "run", attempt=1) is None
    assert append(session, "run", attempt=2) is None


def test_a_task_ends_once(session: str) -> None:
    assert append(session, "task") == 1
    assert append(session, "task") is None


def test_after_the_runs_end_only_the_tasks_may_follow(session: str) -> None:
    assert append(session, "run", attempt=1) == 1
    assert append(session, attempt=1) is None
    assert append(session, attempt=2) is None
    assert append(session) is None
    assert append(session, "task") == 2
    assert append(session) is None
    assert append(session, "run") is None


def test_a_task_without_a_run_may_end_and_nothing_follows(session: str) -> None:
    assert append(session, "task") == 1
    assert append(session, "run", attempt=1) is None
    assert append(session, attempt=1) is None


def test_events_of_no_task_are_never_refused(session: str) -> None:
    append(session, "run")
    append(session, "task")
    assert append(session, task_id=None) == 3
    assert append(session, task_id=None) == 4


@hypothesis_settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.sampled_from(["", "", "", "run", "task"]), st.none() | st.integers(1, 4)
        ),
        max_size=16,
    )
)
def test_any_order_of_events_keeps_the_logs_promises(steps: list[tuple[int, str, int | None]]) -> None:
    session, tasks = new_session(), [uuid.uuid4(), uuid.uuid4()]
    kept: list[tuple[int, str, int | None]] = []
    for step in steps:
        task, closes, attempt = step
        before = [(c, a) for t, c, a in kept if t == task]
        closed = [c for c, _ in before if c]
        newest = max((a for _, a in before if a is not None), default=0)
        allowed = (
            "task" not in closed
            and (closes == "task" or "run" not in closed)
            and (attempt is None or attempt >= newest)
        )
        seq = append(session, closes, attempt, tasks[task])
        assert (seq is not None) == allowed
        if allowed:
            kept.append(step)
            assert seq == len(kept)
    assert seqs(session) == list(range(1, len(kept) + 1))


def test_a_log_lives_for_a_day_after_its_last_event(session: str) -> None:
    append(session, "task")
    keys = [key for key in keys_of(session) if valkey.client().expire(key, 60)]
    assert len(keys) == 3
    append(session, "task", task_id=uuid.uuid4())
    for key in keys:
        assert 24 * 60 * 60 - 60 <= valkey.client().ttl(key) <= 24 * 60 * 60


def test_the_log_and_its_marks_live_on_one_node_of_a_cluster(session: str) -> None:
    append(session, "task")
    assert valkey.client().exists(*keys_of(session)) == 3
    tags = {key[key.index("{") : key.index("}") + 1] for key in keys_of(session)}
    assert tags == {f"{{{session_name('demo', session)}}}"}


def test_a_long_log_forgets_its_beginning_and_keeps_counting(
    session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "LONGEST", 100)

    async def many() -> None:
        for _ in range(500):
            await log.append(event(session), floor=0)

    aio.run(many())
    kept = kept_seqs(session)
    assert 100 <= len(kept) < 300  # Valkey trims whole nodes of 100
    assert kept == list(range(501 - len(kept), 501))
    assert append(session) == 501
    assert seqs(session, after=kept[0] - 1) == [*kept, 501]
    assert hole(session, after=kept[0] - 2)
    assert hole(session, after=0)


@pytest.mark.parametrize("closes", KINDS)
def test_an_append_that_is_tried_again_is_not_done_again(session: str, closes: str) -> None:
    append(session, attempt=1)
    entry = event(session, closes)
    assert [aio.run(log.append(entry, 1, floor=0)) for _ in range(3)] == [2, 2, 2]
    assert seqs(session) == [1, 2]


def test_an_event_of_no_session_has_no_log() -> None:
    nowhere = event("s").model_copy(update={"session_id": None})
    with pytest.raises(ValueError, match="no session"):
        aio.run(log.append(nowhere, floor=0))


def test_a_valkey_that_lost_the_script_gets_it_again(session: str) -> None:
    append(session)
    valkey.client().script_flush()
    assert append(session) == 2
    valkey.client().script_flush()

    async def many() -> list[int | None]:
        return await asyncio.gather(*(log.append(event(session), floor=0) for _ in range(50)))

    assert aio.run(many()) == list(range(3, 53))


def test_a_caller_that_stops_waiting_holds_up_nobody(session: str) -> None:
    async def some() -> int | None:
        impatient = asyncio.create_task(log.append(event(session), floor=0))
        patient = asyncio.create_task(log.append(event(session), floor=0))
        await asyncio.sleep(0)
        impatient.cancel()
        return await patient

    assert aio.run(some()) == 2


def test_a_log_that_cannot_be_written_says_so_and_the_others_are(session: str) -> None:
    broken = new_session()
    valkey.client().set(log._log(session_name("demo", broken)), "no stream")

    async def both() -> list[Any]:
        entries = (event(broken), event(session))
        appends = (log.append(entry, floor=0) for entry in entries)
        return await asyncio.gather(*appends, return_exceptions=True)

    failed, seq = aio.run(both())
    assert isinstance(failed, redis.RedisError)
    assert seq == 1
    valkey.client().delete(log._log(session_name("demo", broken)))


def test_without_a_floor_an_event_begins_no_log_and_follows_in_one_that_lives(session: str) -> None:
    assert aio.run(log.append(event(session))) is None
    assert valkey.client().exists(*keys_of(session)) == 0
    append(session)
    assert aio.run(log.append(event(session))) == 2
    lose(session)
    assert aio.run(log.append(event(session))) is None
    assert seqs(session) == []


def test_a_lost_log_goes_on_far_above_its_floor(session: str) -> None:
    for _ in range(5):
        append(session)
    lose(session)
    assert append_above(session, floor=3) == 3 + log.GAP + 1
    # It lives again: no floor that it has passed moves it.
    assert [append_above(session, floor) for floor in (0, 3, 3 + log.GAP + 3)] == [
        3 + log.GAP + 2,
        3 + log.GAP + 3,
        3 + log.GAP + 4,
    ]
    assert len(kept_seqs(session)) == 4


def test_a_log_that_came_back_without_its_end_goes_on_far_above_what_was_given(session: str) -> None:
    """Valkey may come back as it was a second ago."""
    for _ in range(5):
        append(session)
    assert append_above(session, floor=8) == 8 + log.GAP + 1
    assert append_above(session, floor=8) == 8 + log.GAP + 2
    assert seqs(session, after=3) == [4, 5]
    assert hole(session, after=5)


def test_a_new_logs_first_event_is_the_first_whatever_a_run_thinks_of_its_session(session: str) -> None:
    log.begin(session_name("demo", session))
    assert append_above(session, floor=1) == 1


def test_marks_that_are_lost_alone_are_found_again_above_the_log(session: str) -> None:
    for _ in range(5):
        append(session)
    name = session_name("demo", session)
    assert valkey.client().delete(log._marks(name))
    assert seqs(session, after=3) == [4, 5]
    assert hole(session, after=5), "nobody knows whether there was a sixth"
    assert append_above(session, floor=2) == 5 + log.GAP + 1
    assert seqs(session, after=3) == [4, 5]
    assert hole(session, after=5)
    assert seqs(session, after=5 + log.GAP) == [5 + log.GAP + 1]


def test_a_log_that_is_lost_alone_is_a_hole_to_who_has_not_read_it(session: str) -> None:
    for _ in range(5):
        append(session)
    assert valkey.client().delete(log._log(session_name("demo", session)))
    assert [after for after in range(7) if hole(session, after)] == [0, 1, 2, 3, 4, 6]
    assert append(session) == 6
    assert seqs(session, after=5) == [6]
    assert [after for after in range(8) if hole(session, after)] == [0, 1, 2, 3, 4, 7]


def test_a_log_and_marks_that_are_lost_are_a_hole_to_who_has_read_something(session: str) -> None:
    for _ in range(5):
        append(session)
    lose(session)
    assert [after for after in range(7) if hole(session, after)] == [1, 2, 3, 4, 5, 6]
    log.revive(session_name("demo", session), floor=3)
    assert all(hole(session, after) for after in range(7))
    assert seqs(session, after=3 + log.GAP) == []


def test_who_is_ahead_of_the_log_has_heard_what_was_lost(session: str) -> None:
    append(session)
    assert hole(session, after=2)
    assert hole(session, after=10**15)


@hypothesis_settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["append", "trim", "log", "marks", "both", "read"]), max_size=12),
    st.integers(1, 4),
)
def test_a_reader_misses_nothing_without_being_told(steps: list[str], limit: int) -> None:
    """Whatever is lost: what a reader gets follows its cursor, or there is a hole."""
    session = new_session()
    name = session_name("demo", session)
    cursor = appended = 0
    for step in steps:
        if step == "append":
            appended = append_above(session, floor=appended) or 0
        elif step == "trim":
            valkey.client().xtrim(log._log(name), maxlen=1, approximate=False)
        elif step == "read":
            try:
                got = [seq for seq, _ in aio.run(log.read(name, cursor, limit))]
            except log.Hole:
                cursor = appended = log.revive(name, appended)
                continue
            assert got == list(range(cursor + 1, cursor + 1 + len(got)))
            cursor += len(got)
            if not got:
                # Of a session that it has heard nothing of, it cannot tell that the log was lost.
                assert cursor in (appended, 0)
        else:
            keys = {"log": [log._log(name)], "marks": [log._marks(name)], "both": keys_of(session)}[step]
            valkey.client().delete(*keys)


def test_the_tails_of_many_logs_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "NAMES_AT_ONCE", 3)
    sessions = [new_session() for _ in range(8)]
    for number, session in enumerate(sessions):
        for _ in range(number):
            append(session)
    names = [session_name("demo", session) for session in sessions]
    assert aio.run(log.tails(names)) == [None, 1, 2, 3, 4, 5, 6, 7]
    assert aio.run(log.tails([])) == []


def test_where_a_task_ended_is_known_while_it_is_remembered(session: str) -> None:
    name = session_name("demo", session)
    append(session)
    append(session, "run")
    assert aio.run(log.end_of(name, TASK)) is None
    append(session, "task")
    append(session, task_id=uuid.uuid4())
    assert aio.run(log.end_of(name, TASK)) == log.end_of_sync(name, TASK) == 3
    lose(session)
    assert log.end_of_sync(name, TASK) is None


def append_above(session: str, floor: int) -> int | None:
    return aio.run(log.append(event(session), floor=floor))


@hypothesis_settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["append", "revive"])), max_size=5))
def test_no_seq_is_given_twice_however_often_a_log_is_lost(losses: list[tuple[int, str]]) -> None:
    """Any seq of the log's last life is floor enough."""
    session = new_session()
    name = session_name("demo", session)
    given_seqs = [append(session)]
    for events, how in losses:
        floor = given_seqs[-1]
        assert floor is not None
        given_seqs += [append_above(session, floor) for _ in range(events)]
        lose(session)
        if how == "revive":
            assert log.revive(name, floor) == floor + log.GAP
            assert log.last_seq_sync(name) == floor + log.GAP
        given_seqs.append(append_above(session, floor))
    assert given_seqs == sorted(set(given_seqs))


def test_reviving_leaves_a_log_that_lives_as_it_is(session: str) -> None:
    name = session_name("demo", session)
    append(session)
    append(session)
    assert [log.revive(name, floor) for floor in (0, 1, 2)] == [2, 2, 2]
    assert append(session) == 3


def test_reviving_a_log_that_came_back_without_its_end_lifts_it(session: str) -> None:
    name = session_name("demo", session)
    append(session)
    assert log.revive(name, floor=2) == 2 + log.GAP
    assert log.revive(name, floor=2) == 2 + log.GAP
    assert append(session) == 2 + log.GAP + 1


def test_a_revived_log_lives_for_a_day_and_counts_from_its_tail(session: str) -> None:
    name = session_name("demo", session)
    assert log.revive(name, floor=7) == 7 + log.GAP
    assert log.revive(name, floor=7) == 7 + log.GAP
    assert 24 * 60 * 60 - 60 <= valkey.client().ttl(log._marks(name)) <= 24 * 60 * 60
    assert aio.run(log.last_seq(name)) == log.last_seq_sync(name) == 7 + log.GAP
    assert append(session) == 7 + log.GAP + 1


def test_many_who_revive_at_once_agree(session: str) -> None:
    barrier = threading.Barrier(8)

    def revive(floor: int) -> int:
        barrier.wait(timeout=30)
        return log.revive(session_name("demo", session), floor)

    with ThreadPoolExecutor(8) as threads:
        [tail] = set(threads.map(revive, range(1, 9)))
    assert tail in range(log.GAP + 1, log.GAP + 9)


def test_the_thousand_and_first_closed_task_makes_the_first_forgotten(session: str) -> None:
    ends = [event(session, "task", uuid.uuid4()) for _ in range(log.CLOSED_TASKS + 1)]

    async def many(entries: list[Note]) -> list[int | None]:
        return [await log.append(entry, floor=0) for entry in entries]

    assert aio.run(many(ends[:-1])) == list(range(1, log.CLOSED_TASKS + 1))
    _, marks, closed, _ = keys_of(session)
    assert valkey.client().hexists(marks, f"task:{ends[0].task_id}")
    aio.run(many(ends[-1:]))
    fields = valkey.client().hkeys(marks)
    remembered = {field.decode().removeprefix("task:") for field in fields if field.startswith(b"task:")}
    assert remembered == {str(end.task_id) for end in ends[1:]}
    assert len(fields) == log.CLOSED_TASKS + 1  # and the seq
    assert valkey.client().llen(closed) == log.CLOSED_TASKS
    # What is remembered is still refused.
    assert append(session, "task", task_id=ends[1].task_id) is None
    assert append(session, task_id=ends[-1].task_id) is None


def test_a_patient_append_waits_for_valkey_and_is_done_once(
    session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [redis.ConnectionError(), OSError(), redis.TimeoutError()]
    really = log.append

    async def fragile(entry: Event, attempt: int | None = None, **more: Any) -> int | None:
        seq = await really(entry, attempt, **more)
        if errors:
            raise errors.pop()
        return seq

    monkeypatch.setattr(log, "append", fragile)
    monkeypatch.setattr(log, "RETRY_SECONDS", 0)
    assert aio.run(log.append_patiently(event(session), 1, floor=0)) == 1
    assert (errors, seqs(session)) == ([], [1])
    errors += [redis.ConnectionError()] * (log.TRIES + 1)
    with pytest.raises(redis.ConnectionError):
        aio.run(log.append_patiently(event(session), 1, floor=0))
    assert errors == []


@pytest.fixture
def real_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "PACE", 10_000)


@pytest.mark.usefixtures("real_pace")
@pytest.mark.parametrize("how", ["append", "revive"])
def test_events_that_nobody_knows_of_are_not_counted_again(session: str, how: str) -> None:
    """The ends of a task are told after its last message was written: lost twice, its floor is the same."""
    name = session_name("demo", session)
    given_seqs = [append(session)]
    for _ in range(3):
        lose(session)
        if how == "revive":
            log.revive(name, floor=1)
        given_seqs += [append_above(session, floor=1) for _ in range(3)]
    assert given_seqs == sorted(set(given_seqs))
    assert given_seqs[-1] is not None
    assert 10**12 < given_seqs[-1] < 10**15  # digits that Lua would round, and that `after` takes
    last = given_seqs[-1]
    assert kept_seqs(session) == [last - 2, last - 1, last]
    assert aio.run(log.last_seq(name)) == last


@pytest.mark.parametrize("closes", ["", "run"])
def test_an_append_that_is_tried_again_is_not_done_again_though_others_spoke(
    session: str, closes: str
) -> None:
    """The worker's answer was lost; meanwhile the front door said that the task is being cancelled."""
    note = event(session, closes)

    async def scenario() -> list[int | None]:
        first = await log.append(note, 1, floor=0)
        await log.append(event(session))
        return [first, await log.append(note, 1, floor=0)]

    first, again = aio.run(scenario())
    assert again == first == 1


class AttemptEnd(Note):
    closes = "attempt"


def test_nobody_says_late_that_an_attempt_follows(session: str) -> None:
    KINDS["attempt"] = AttemptEnd
    assert append(session, attempt=1) == 1
    assert append(session, "attempt", attempt=2) == 2
    assert append(session, attempt=1) is None
    assert append(session, attempt=2) == 3
    assert append(session, "attempt", attempt=2) is None
    assert append(session, "attempt", attempt=3) == 4
