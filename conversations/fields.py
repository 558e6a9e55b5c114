"""Bounds of what a session has beside its messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from agents.variables import NAME_PATTERN, PROMPT_VARIABLES

MOST_VARIABLES = 50
LONGEST_CONTEXT = 16 * 1024  # bytes of all values and names together
LONGEST_USER_INFO = 4 * 1024  # bytes of JSON
TITLE_MADE = 80  # characters of a first message

_name = re.compile(NAME_PATTERN.replace("$", r"\Z"))

UserId = Annotated[str, StringConstraints(max_length=255)]
Title = Annotated[str, StringConstraints(max_length=200, strip_whitespace=True)]


class UserInfo(BaseModel):
    """Who is speaking, as the front end tells it: display data, never a proof.

    Any fields beside `user_id` (`name`, `email`, `locale`, …), 4 KiB of JSON at most.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    user_id: UserId = ""

    @model_validator(mode="after")
    def _small(self) -> UserInfo:
        if self.__pydantic_extra__ and len(orjson.dumps(self.__pydantic_extra__)) > LONGEST_USER_INFO:
            raise PydanticCustomError(
                "too_long", "at most {limit} bytes of JSON", {"limit": LONGEST_USER_INFO}
            )
        return self

    @property
    def about(self) -> dict[str, Any]:
        """All but the id."""
        return dict(self.__pydantic_extra__ or {})


def _variable(name: str) -> str:
    if not _name.match(name):
        raise PydanticCustomError("variable_name", "1 to 32 lower-case letters and underscores")
    if name in PROMPT_VARIABLES:
        raise PydanticCustomError("variable_taken", "the platform sets this one itself")
    return name


def check_context(context: Mapping[str, str]) -> None:
    """Whether so much may be kept. Raises ValueError."""
    if len(context) > MOST_VARIABLES:
        raise ValueError(f"at most {MOST_VARIABLES} variables")
    if sum(len(name) + len(value.encode()) for name, value in context.items()) > LONGEST_CONTEXT:
        raise ValueError(f"at most {LONGEST_CONTEXT} bytes of names and values")


def _bounded(context: dict[str, Any]) -> dict[str, Any]:
    try:
        check_context({name: value for name, value in context.items() if value is not None})
    except ValueError as error:
        raise PydanticCustomError("too_long", "{reason}", {"reason": str(error)}) from None
    return context


VariableName = Annotated[str, AfterValidator(_variable)]
_NAMES: dict[str, Any] = {
    "propertyNames": {"pattern": NAME_PATTERN, "not": {"enum": list(PROMPT_VARIABLES)}},
    "maxProperties": MOST_VARIABLES,
}
Context = Annotated[
    dict[VariableName, str],
    AfterValidator(_bounded),
    Field(
        description="What `{{name}}` stands for in the agent's instructions, in this session.",
        json_schema_extra=_NAMES,
    ),
]
# Null removes a variable; those that are not named stay.
ContextChange = Annotated[
    dict[VariableName, str | None], AfterValidator(_bounded), Field(json_schema_extra=_NAMES)
]


def title_of(message: str) -> str:
    """The beginning of a message as the session's title."""
    text = " ".join(message[: 4 * TITLE_MADE].split())
    return text if len(text) <= TITLE_MADE else text[: TITLE_MADE - 1].rstrip() + "…"
