"""An agent's configuration."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from agents.config import AgentConfig

LEAST = {"provider": "openai", "model": "gpt-4.1-mini"}


def test_only_provider_and_model_are_required() -> None:
    config = AgentConfig(**LEAST)
    assert (config.temperature, config.instructions, config.max_turns) == (None, "", 10)
    assert (config.fallback, config.multitask_strategy, config.restart_after_fault) == (
        None,
        "enqueue",
        False,
    )
    for name in LEAST:
        with pytest.raises(ValidationError):
            AgentConfig(**{key: value for key, value in LEAST.items() if key != name})


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"max_output_tokens": 1},
        {"timeout_seconds": 0.1},
        {"timeout_seconds": 3600},
        {"context_tokens": 256},
        {"max_turns": 100},
        {"instructions": "x" * 32_768},
        {"model": "org/model:7b@2024"},
        {"fallback": {"provider": "groq", "model": "m"}},
        {"provider": "a-name-of-the-tenants-own"},
        {"fallback": None},
        {"multitask_strategy": "interrupt"},
        {"restart_after_fault": True},
    ],
)
def test_what_fits(field: dict[str, Any]) -> None:
    AgentConfig(**LEAST | field)


@pytest.mark.parametrize(
    "field",
    [
        {"provider": "No Body"},
        {"provider": ""},
        {"provider": "x" * 41},
        {"model": ""},
        {"model": "two words"},
        {"model": "line\n"},
        {"model": "x" * 129},
        {"model": "é"},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"max_output_tokens": 0},
        {"max_output_tokens": 1.5},
        {"timeout_seconds": 0},
        {"timeout_seconds": 3601},
        {"timeout_seconds": float("nan")},
        {"context_tokens": 255},
        {"max_turns": 0},
        {"instructions": "x" * 32_769},
        {"greeting": "x" * 2_001},
        {"fallback": {}},
        {"fallback": {"provider": "groq"}},
        {"fallback": {"provider": "No Body", "model": "m"}},
        {"fallback": {"provider": "groq", "model": "two words"}},
        {"fallback": {"provider": "groq", "model": "m", "fallback": None}},
        {"multitask_strategy": "drop"},
        {"multitask_strategy": None},
        {"api_key": "sk-1"},
        {"base_url": "http://169.254.169.254/"},
    ],
    ids=lambda field: str(field)[:40],
)
def test_what_does_not_fit(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AgentConfig(**LEAST | field)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        AgentConfig(**LEAST).model = "other"  # type: ignore[misc]
