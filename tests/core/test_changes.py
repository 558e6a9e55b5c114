"""What differs between two states."""

from __future__ import annotations

from typing import Any

import pytest

from core.changes import Change, changes_between


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, []),
        ({"a": 1, "b": [1]}, {"a": 1, "b": [1]}, []),
        ({"a": 1}, {"a": 2}, [("a", 1, 2)]),
        ({}, {"a": 1}, [("a", None, 1)]),
        ({"a": 1}, {}, [("a", 1, None)]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, [("a.c", 2, 3)]),
        ({"a": None}, {"a": {"b": 1}}, [("a", None, {"b": 1})]),
        ({"a": [1, 2]}, {"a": [2, 1]}, [("a", [1, 2], [2, 1])]),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, [("b", 1, 2), ("a", 1, 2)]),
    ],
)
def test_fields_that_differ_are_named(before: Any, after: Any, expected: list[Any]) -> None:
    assert changes_between(before, after) == [Change(*change) for change in expected]


def test_a_prefix_stands_before_every_name() -> None:
    assert changes_between({"a": {"b": 1}}, {"a": {"b": 2}}, prefix="config.") == [Change("config.a.b", 1, 2)]


def test_long_texts_are_compared_line_by_line() -> None:
    change = Change("instructions", "Be kind.\nBe brief.", "Be kind.\nBe thorough.")
    assert change.diff.splitlines() == [
        "--- before",
        "+++ after",
        "@@ -1,2 +1,2 @@",
        " Be kind.",
        "-Be brief.",
        "+Be thorough.",
    ]
    assert change.as_dict() == {
        "field": "instructions",
        "before": change.before,
        "after": change.after,
        "diff": change.diff,
    }


@pytest.mark.parametrize(("before", "after"), [("one", "two"), (1, 2), (None, "two"), ({"a": "b\n"}, "x\n")])
def test_what_is_short_or_no_text_is_not(before: Any, after: Any) -> None:
    assert Change("name", before, after).as_dict() == {"field": "name", "before": before, "after": after}


def test_a_new_long_text_has_a_diff_too() -> None:
    assert Change("instructions", None, "one\ntwo").diff.splitlines()[-2:] == ["+one", "+two"]
