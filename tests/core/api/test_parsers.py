"""Strict JSON."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import orjson
import pytest
from django.db import connection
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.api.parsers import MAX_BODY, MAX_DEPTH, MAX_KEYS, StrictJSONParser, parse_json
from core.errors import BodyTooLarge, MalformedRequest, ValidationFailed


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


def test_json_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\xc3\xa9", true, null]}') == {"a": [1, 2.5, "é", True, None]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "nul",
        "{'a': 1}",
        '{"a": 1,}',
        "[1] [2]",
        "NaN",
        "[NaN]",
        "Infinity",
        "-Infinity",
        '{"a": Infinity}',
        "1e400",
        "1" + "0" * 400,
        "01",
        '"\\ud800"',
        '"\\udc00"',
        '{"\\ud800": 1}',
        '"a\nb"',
        "\ufeff{}",
        b"\xff\xfe{}",
        b'"\xed\xa0\x80"',
        b'"\xc0\x80"',
        b"\x00",
    ],
    ids=repr,
)
def test_what_is_not_json(text: str | bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_json(text)


def test_depth_has_a_limit() -> None:
    assert MAX_DEPTH == 32
    parse_json(nested(32))
    parse_json('{"a":' * 31 + "{}" + "}" * 31)
    for text in (nested(33), '{"a":' * 32 + "{}" + "}" * 32, '[{"a":' * 16 + "[]" + "}]" * 16):
        with pytest.raises(MalformedRequest, match="JSON"):
            parse_json(text)


@pytest.mark.parametrize("depth", [100, 1_000, 1_025, 5_000, 100_000])
def test_a_very_deep_body_is_refused_and_breaks_nothing(depth: int) -> None:
    for text in (nested(depth), "[" * depth, '{"a":' * depth + "1" + "}" * depth):
        with pytest.raises(MalformedRequest):
            parse_json(text)


@pytest.mark.parametrize("outside", ["%s", '{"metadata": %s}', "[[%s]]"], ids=["it", "a field", "in lists"])
def test_an_object_has_only_so_many_fields(outside: str) -> None:
    def body(keys: int) -> str:
        return outside % json.dumps({f"k{number}": number for number in range(keys)})

    parse_json(body(MAX_KEYS))
    with pytest.raises(MalformedRequest) as refused:
        parse_json(body(MAX_KEYS + 1))
    assert "1000 fields" in refused.value.details["reason"]


def test_depth_counts_down_one_branch_not_over_all() -> None:
    parse_json(json.dumps([[[[]]]] * 1_000))


@pytest.mark.parametrize(
    "text",
    ['"\\u0000"', '{"a": "x\\u0000"}', '{"x\\u0000": 1}', '[[["\\u0000"]]]', '{"a": {"b": ["\\u0000"]}}'],
)
def test_nul_is_refused_wherever_it_hides(text: str) -> None:
    with pytest.raises(ValidationFailed):
        parse_json(text)


@pytest.mark.parametrize("text", ["1" + "0" * 30, "-" + "9" * 300, "18446744073709551616", "1e308", "-1e19"])
def test_numbers_beyond_64_bits_are_refused(text: str) -> None:
    """PostgreSQL would give them back as integers that no writer of JSON takes."""
    with pytest.raises(ValidationFailed):
        parse_json(text)


@pytest.mark.parametrize("text", ["18446744073709551615", "-9223372036854775808", "9.2e18", "1e-400", "-0.0"])
def test_other_numbers_are_finite_and_can_be_written_again(text: str) -> None:
    number = parse_json(text)
    assert math.isfinite(number)
    assert orjson.loads(orjson.dumps(number)) == number


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=20,
)


@hypothesis_settings(max_examples=150)
@given(anything)
def test_what_is_accepted_can_be_stored_and_nothing_else_happens(db: None, value: Any) -> None:
    text = json.dumps(value)
    try:
        parsed = parse_json(text)
    except (MalformedRequest, ValidationFailed):
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT (%s::jsonb)::text", [json.dumps(parsed)])
        orjson.dumps(json.loads(cursor.fetchone()[0]))  # what is read again can be answered


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0019.eE-+ntf ', max_size=60))
def test_noise_is_refused_by_name_or_read(noise: bytes | str) -> None:
    try:
        parse_json(noise)
    except (MalformedRequest, ValidationFailed):
        pass


def test_a_body_is_bounded_in_size() -> None:
    parser = StrictJSONParser()
    fits = b'"' + b"a" * (MAX_BODY - 2) + b'"'
    assert MAX_BODY == 256 * 1024
    assert len(parser.parse(io.BytesIO(fits))) == MAX_BODY - 2
    with pytest.raises(BodyTooLarge):
        parser.parse(io.BytesIO(fits + b" "))
