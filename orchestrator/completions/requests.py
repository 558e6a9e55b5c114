"""What a client of the OpenAI-compatible API asks, as a run."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StringConstraints,
    ValidationError,
)

from core.queues.names import NORMAL
from core.rules import WHOLE
from execution.actions import RunMessage, RunOptions, StopSequence
from orchestrator.errors import ParameterRefused
from orchestrator.execution_actions import EndUser, ExecutionStartAction

# What clients send that asks for nothing beyond what an agent does anyway, by parameter. Anything else of
# these is refused, and so is a parameter that stands neither here nor below.
_ANY = object()
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (_ANY,),
    "prompt_cache_options": (_ANY,),
    "prompt_cache_retention": (_ANY,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "seed": (),
    "service_tier": ("auto", "default"),
    "store": (True, False),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Of an assistant's message that a client sends back as it got it.
_HARMLESS_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}

Tokens = Annotated[int, Field(ge=1, le=1_000_000), WHOLE]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Metadata = Annotated[dict[Name, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


def _also(harmless: dict[str, tuple[Any, ...]]) -> Callable[[dict[str, Any]], None]:
    """For the schema: what a shape may have besides, and nothing else."""

    def say(schema: dict[str, Any]) -> None:
        for name, accepted in harmless.items():
            values = [{"const": value} for value in (None, *accepted)]
            schema["properties"][name] = {} if accepted == (_ANY,) else {"anyOf": values}
        schema["additionalProperties"] = False

    return say


class TextPart(_Shape):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class CompletionMessage(_Shape):
    """A message, its content as text or as parts of text. `developer` is another word for `system`."""

    model_config = ConfigDict(json_schema_extra=_also(_HARMLESS_IN_MESSAGES))

    role: Literal["developer", "system", "user", "assistant"]
    content: str | list[TextPart]


class StreamOptions(BaseModel):
    """`include_usage`: one more chunk, before the end, has the usage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include_usage: StrictBool | None = None
    include_obfuscation: StrictBool | None = None


class CompletionBody(_Shape):
    """The body of a chat completion. `model` is the id or the slug of one of the tenant's agents.

    Other parameters of the OpenAI API are accepted where they ask for nothing: null, or their default.
    """

    model_config = ConfigDict(json_schema_extra=_also(_HARMLESS))

    model: Name
    messages: list[CompletionMessage] = Field(min_length=1)
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: StrictFloat | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: StopSequence | Annotated[list[StopSequence], Field(max_length=4)] | None = None
    user: EndUser | None = None
    safety_identifier: EndUser | None = None
    metadata: Metadata | None = None

    @classmethod
    def of(cls, body: dict[str, Any]) -> CompletionBody:
        """Raises ParameterRefused."""
        try:
            asked = cls(**body)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            # Of the shapes that something may have, the one that fits furthest.
            problem = max(problems, key=lambda problem: len(problem["loc"]))
            missing = problem["type"] == "missing"
            code = "missing_required_parameter" if missing else "invalid_value"
            raise ParameterRefused(_place(problem["loc"]), code, problem["msg"]) from None
        _check(asked.model_extra or {}, _HARMLESS)
        for place, message in enumerate(asked.messages):
            _check(message.model_extra or {}, _HARMLESS_IN_MESSAGES, f"messages[{place}].")
        if asked.max_tokens is not None and asked.max_completion_tokens is not None:
            raise ParameterRefused("max_tokens", "invalid_value", "max_completion_tokens is there, too")
        if asked.stream_options is not None and not asked.stream:
            raise ParameterRefused("stream_options", "invalid_value", "only for a stream")
        return asked

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to tell its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def action(self, agent_id: uuid.UUID) -> ExecutionStartAction:
        """The run that is asked for."""
        bound = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()) or None
        return ExecutionStartAction(
            agent_id=agent_id,
            messages=tuple(_message(message) for message in self.messages),
            options=RunOptions(temperature=self.temperature, max_output_tokens=bound, stop=stop),
            user_id=self.user or self.safety_identifier or "",
            priority=NORMAL,
            metadata=self.metadata or {},
        )


def _message(message: CompletionMessage) -> RunMessage:
    content = message.content
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    return RunMessage(role="system" if message.role == "developer" else message.role, content=text)


def _check(extra: dict[str, Any], harmless: dict[str, tuple[Any, ...]], prefix: str = "") -> None:
    for name, value in extra.items():
        if name not in harmless:
            raise ParameterRefused(f"{prefix}{name}", "unknown_parameter", "there is no such parameter")
        if value is not None and not any(_is(value, accepted) for accepted in harmless[name]):
            raise ParameterRefused(f"{prefix}{name}", "unsupported_parameter", "agents do not offer it")


def _is(value: Any, accepted: Any) -> bool:
    """Equal, and not only as Python sees it, for which 1 is true."""
    same_kind = isinstance(value, bool) == isinstance(accepted, bool)
    return accepted is _ANY or (same_kind and bool(value == accepted))


def _place(loc: tuple[int | str, ...]) -> str:
    """`messages[0].content`; which shape of several pydantic tried stays its own."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part[:1].islower() and part.isidentifier() and part not in ("str", "list"):
            text += f".{part}" if text else part
    return text or "body"
