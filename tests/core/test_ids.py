"""Identifiers."""

from __future__ import annotations

import itertools
import time
import uuid

import pytest
from django.core.exceptions import ValidationError as DjangoValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from core.actions.base import SessionId, TenantId
from core.ids import (
    SYSTEM_TENANT,
    is_session_id,
    is_slug,
    new_session_id,
    parse_uuid,
    uuid7,
)
from core.models.tenant import slug_validator

RANDOM_BITS = ((1 << 12) - 1) << 64 | (1 << 62) - 1

SLUGS = ["a", "0", "demo", "tenant-123", "a--b", "a" * 40, "0-9"]
NO_SLUGS = [
    "",
    "-a",
    "a-",
    "-",
    "A",
    "demo\n",
    "\ndemo",
    "demo ",
    "a_b",
    "a" * 41,
    "a.b",
    "a:b",
    "ä",
    "d\x00emo",
    "🎈",
    "a*",
    "١",
    SYSTEM_TENANT,
]


def test_uuid7_says_what_it_is() -> None:
    made = uuid7()
    assert made.version == 7
    assert made.variant == uuid.RFC_4122


def test_uuid7_begins_with_the_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid7()
    after = time.time_ns() // 1_000_000
    assert before <= made.int >> 80 <= after


def test_uuid7_of_a_later_millisecond_sorts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    made = []
    for millisecond in range(200):
        monkeypatch.setattr("core.ids.time.time_ns", lambda moment=now + millisecond * 1_000_000: moment)
        made.append(uuid7())
    assert made == sorted(made)
    assert [str(one) for one in made] == sorted(str(one) for one in made)


def test_the_other_74_bits_of_uuid7_are_random_and_none_of_them_counts() -> None:
    assert RANDOM_BITS.bit_count() == 74
    made = [uuid7().int & RANDOM_BITS for _ in range(4_000)]
    assert len(set(made)) == len(made)
    for bit in range(80):
        if RANDOM_BITS >> bit & 1:
            ones = sum(one >> bit & 1 for one in made)
            assert 1_600 < ones < 2_400  # a fair bit misses this once in 10^36
    steps = {later - earlier for earlier, later in itertools.pairwise(made)}
    assert len(steps) == len(made) - 1


@pytest.mark.parametrize("text", SLUGS)
def test_slugs(text: str) -> None:
    assert is_slug(text)
    assert TypeAdapter(TenantId).validate_python(text) == text
    slug_validator(text)


@pytest.mark.parametrize("text", NO_SLUGS, ids=repr)
def test_no_slugs_at_any_door(text: str) -> None:
    assert not is_slug(text)
    with pytest.raises(ValidationError):
        TypeAdapter(TenantId).validate_python(text)
    with pytest.raises(DjangoValidationError):
        slug_validator(text)


@given(st.text(max_size=50) | st.from_regex(r"[a-z0-9-]{0,42}\n?", fullmatch=True))
def test_the_three_doors_agree_on_what_a_slug_is(text: str) -> None:
    def accepts_validator() -> bool:
        try:
            slug_validator(text)
        except DjangoValidationError:
            return False
        return True

    def accepts_pydantic() -> bool:
        try:
            TypeAdapter(TenantId).validate_python(text)
        except ValidationError:
            return False
        return True

    assert is_slug(text) == accepts_pydantic() == accepts_validator()


@pytest.mark.parametrize("text", ["a", "Z_9-", "x" * 64])
def test_session_ids(text: str) -> None:
    assert is_session_id(text)
    assert TypeAdapter(SessionId).validate_python(text) == text


@pytest.mark.parametrize(
    "text", ["", "x" * 65, "a b", "a\n", "a:b", "ä", "a.b", "a\x00", "a/b", "🎈"], ids=repr
)
def test_no_session_ids(text: str) -> None:
    assert not is_session_id(text)
    with pytest.raises(ValidationError):
        TypeAdapter(SessionId).validate_python(text)


def test_new_session_ids_are_session_ids_of_128_bits() -> None:
    made = {new_session_id() for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(is_session_id(one) and len(one) == 22 for one in made)  # 22 x 6 bits >= 128


def test_parse_uuid_reads_what_uuid_writes() -> None:
    made = uuid7()
    assert parse_uuid(str(made)) == made


@pytest.mark.parametrize("text", ["", "x", "1" * 31, "1" * 33, "é" * 32, None, 5, "0" * 10_000])
def test_parse_uuid_of_anything_else_is_none(text: object) -> None:
    assert parse_uuid(text) is None  # type: ignore[arg-type]


@given(st.text(max_size=40))
def test_parse_uuid_never_raises(text: str) -> None:
    assert parse_uuid(text) is None or isinstance(parse_uuid(text), uuid.UUID)
