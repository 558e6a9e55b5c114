"""Items as they come: a list in JSON, or JSONL; every one is looked at before anything is stored."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from rest_framework.parsers import BaseParser

from core.api.parsers import MAX_IMPORT, parse_json
from core.errors import BodyTooLarge, MalformedRequest, NoobleError, ValidationFailed
from execution.actions import RunMessage
from orchestrator.batches.actions import MOST_ITEMS, BatchItemInput, BatchLine, CustomId
from orchestrator.completions.requests import CompletionBody
from orchestrator.errors import ParameterRefused

MOST_TOLD = 100  # problems of one request


class Problems:
    """What is wrong with a request's items, by their places."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._count = 0

    def add(self, place: str, error: NoobleError) -> None:
        """What the error says, at that place: of fields at each of them, else its message."""
        if type(error) is ValidationFailed:
            told = {
                f"{place}.{name}" if name != "body" else place: text for name, text in error.details.items()
            }
        else:
            more = ", ".join(f"{name}: {value}" for name, value in error.details.items())
            told = {place: f"{error} ({more})" if more else str(error)}
        for where, reason in told.items():
            self._count += 1
            if len(self._told) < MOST_TOLD:
                self._told[where] = str(reason)

    def refuse(self) -> None:
        """Raises ValidationFailed if there are any; the first hundred are named."""
        if not self._count:
            return
        more = self._count - len(self._told)
        raise ValidationFailed(details=self._told | ({"more": f"{more} more problems"} if more else {}))


class JSONLines(bytes):
    """A body of lines, unread."""


class JSONLinesParser(BaseParser):
    """DRF's door to JSONL; the lines are parsed one by one, by whoever can name them."""

    media_type = "application/jsonl"

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> Any:
        raw = stream.read(MAX_IMPORT + 1)
        if len(raw) > MAX_IMPORT:
            raise BodyTooLarge(details={"limit": MAX_IMPORT})
        return JSONLines(raw)


class NDJSONParser(JSONLinesParser):
    media_type = "application/x-ndjson"


class OpenAILine(BaseModel):
    """A line of the OpenAI batch API; `model` of its body is an agent's id or slug."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    custom_id: CustomId
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: dict[str, Any]


def items_of(source: JSONLines | list[Any], agent_id: uuid.UUID | None) -> tuple[BatchItemInput, ...]:
    """The items of a request; `agent_id` is the batch's, if it names one.

    Raises ValidationFailed with all that is wrong, by line (`lines.3.message`, from 1) or by place in the
    list (`items.2.message`, from 0).
    """
    problems = Problems()
    values = _values_of_lines(source, problems) if isinstance(source, JSONLines) else _numbered(source)
    items = []
    known: dict[str, str] = {}
    for count, (place, value) in enumerate(values, start=1):
        if count > MOST_ITEMS:
            raise ValidationFailed(details={"items": f"at most {MOST_ITEMS}"})
        try:
            item = _item_of(place, value)
            _check(item, agent_id, known)
        except NoobleError as error:
            problems.add(place, error)
        else:
            items.append(item)
    problems.refuse()
    if not items:
        raise ValidationFailed(details={"items": "at least one"})
    return tuple(items)


def _numbered(values: list[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"items.{number}", value) for number, value in enumerate(values))


def _values_of_lines(raw: bytes, problems: Problems) -> Iterator[tuple[str, Any]]:
    """Empty lines are none, but count."""
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"lines.{number}"
        try:
            yield place, parse_json(line)
        except MalformedRequest as error:
            reason = f"not valid JSON: {error.details['reason']}"
            problems.add(place, ValidationFailed(details={"body": reason}))
        except ValidationFailed as error:
            problems.add(place, error)


def _check(item: BatchItemInput, agent_id: uuid.UUID | None, known: dict[str, str]) -> None:
    """What depends on the rest of the request. Raises ValidationFailed."""
    if item.agent is None and agent_id is None:
        raise ValidationFailed(details={"agent_id": "neither the item nor the batch names an agent"})
    if item.custom_id and (first := known.setdefault(item.custom_id, item.place)) != item.place:
        raise ValidationFailed(details={"custom_id": f"the same as of {first}"})


def _item_of(place: str, value: Any) -> BatchItemInput:
    """Raises ValidationFailed."""
    if not isinstance(value, dict):
        raise ValidationFailed(details={"body": "a JSON object"})
    try:
        return _openai_item(place, value) if "body" in value else _own_item(place, value)
    except ValidationError as error:
        raise ValidationFailed.of(error) from None


def _own_item(place: str, value: dict[str, Any]) -> BatchItemInput:
    line = BatchLine(**value)
    return BatchItemInput(
        place=place,
        custom_id=line.custom_id or "",
        agent=str(line.agent_id) if line.agent_id is not None else None,
        messages=line.messages or (RunMessage(role="user", content=line.message or ""),),
        options=line.options,
        user_id=line.user_id,
        metadata=line.metadata,
    )


def _openai_item(place: str, value: dict[str, Any]) -> BatchItemInput:
    line = OpenAILine(**value)
    try:
        asked = CompletionBody.of(line.body)
    except ParameterRefused as error:
        details = {f"body.{name}": reason for name, reason in error.details.items()}
        raise ValidationFailed(details=details) from None
    if asked.stream:
        raise ValidationFailed(details={"body.stream": "a batch does not stream"})
    run = asked.action(uuid.UUID(int=0))  # whose agent that is depends on the tenant
    return BatchItemInput(
        place=place,
        custom_id=line.custom_id,
        agent=asked.model,
        messages=run.messages,
        options=run.options,
        user_id=run.user_id,
        metadata=run.metadata,
    )
