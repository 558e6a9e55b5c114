"""A fake model behind the OpenAI wire, for tests and measurements.

    python -m bench.fake_model --port 0 --ready-file /tmp/fake.json

It answers `POST /v1/chat/completions` (streamed or not) with "tok0 tok1 tok2 …" on a fixed
schedule, checks requests as the real API does, and can misbehave. The `model` of a request
chooses how, as `fake[-behaviour][?parameter=value&…]`; a name that does not begin with `fake`
is answered normally.

Parameters of every behaviour: `first_token` and `interval` (seconds), `tokens`, and `usage`:
`last` (a chunk of its own, when the request asks for it), `x_groq` (Groq's place), `none`, or any
JSON, which is sent as it is; `finish` (the finish reason). Whatever misbehaves does so for every
request, or with `fail_times` for the first so many of this exact name, or with `rate` for that
share of the requests; the others get the answer of `fake`. The share is drawn from the messages
and how often this name was asked them: the same whatever else is asked, and in which order.

    fake                 the answer
    fake-echo            the JSON of the messages it received, as the answer
    fake-no-usage        the same as `?usage=none`
    fake-no-done         ends after the finish reason, without [DONE]
    fake-reasoning       as many reasoning pieces as tokens, then the answer
    fake-nul             NUL and a lone surrogate among the tokens
    fake-400 … fake-504  that status; `retry_after` (seconds or a date) is sent as given
    fake-429-once        the same as `fake-429?fail_times=1`
    fake-flaky           `status` (500; several take turns: `500,502,503`) for a share `rate` (0.3)
    fake-garbage         `at` (half the tokens), then one event that is not JSON; `text` or `hex` give another
    fake-html            200 and a web page
    fake-json            200 and a whole answer in JSON although a stream was asked for
    fake-redirect        307 to another path of this server, `/_trap`
    fake-reset           a reset before the answer
    fake-cut             half a stream, then a reset
    fake-end             half a stream, then a proper end of the response
    fake-error           half a stream, then an error object with `code` and `type`
    fake-silent          takes the request and says nothing, not even headers
    fake-stall           half a stream, then silence, or with `comments` (seconds) only these
    fake-comments        headers, then only comments, `interval` apart
    fake-slow-first      the first token after 60 s
    fake-hang            the whole answer and [DONE], but the response never ends
    fake-endless         never stops
    fake-huge-line       one line of `bytes` (10 MB) without an end

`GET /_books` tells what happened to every request, `DELETE /_books` forgets it. A request stands
there as soon as it was read, so also when its client is killed; requests that are no valid ones
stand there as the model `_refused`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import orjson
from aiohttp import web

Outcome = Literal["running", "finished", "refused", "broken", "cut"]

# Requests kept in the books.
_BOOKS_LENGTH = 20_000
_FOREVER = 86_400.0  # seconds

_PARAMETERS: dict[str, dict[str, str]] = {
    "": {},
    "echo": {},
    "no-usage": {"usage": "none"},
    "no-done": {},
    "reasoning": {},
    "nul": {},
    "429-once": {"status": "429", "fail_times": "1"},
    "flaky": {"status": "500", "rate": "0.3"},
    "garbage": {"text": '{"choices": ['},
    "html": {},
    "json": {},
    "redirect": {},
    "reset": {},
    "cut": {},
    "end": {},
    "error": {"code": "server_error", "type": "server_error"},
    "silent": {},
    "stall": {},
    "comments": {},
    "slow-first": {"first_token": "60"},
    "hang": {},
    "endless": {"tokens": str(10**9)},
    "huge-line": {"bytes": "10000000"},
} | {str(status): {"status": str(status)} for status in (400, 401, 403, 404, 409, 413, 422, 429)}
_PARAMETERS |= {str(status): {"status": str(status)} for status in (500, 502, 503, 504)}

# Behaviours that stop in the middle of the answer.
_HALVES = ("cut", "end", "error", "stall", "garbage")

_KNOWN_FIELDS = frozenset(
    (
        "model",
        "messages",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "n",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "user",
        "seed",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "metadata",
        "store",
        "service_tier",
        "reasoning_effort",
    )
)


@dataclass(frozen=True)
class Schedule:
    """The server's defaults: seconds to the first token, between tokens, and how many there are."""

    first_token: float = 0.05
    interval: float = 0.01
    tokens: int = 50


@dataclass
class Entry:
    """One request in the books. Times are the wall clock's seconds; tokens are those written out."""

    id: int
    model: str
    messages: list[dict[str, Any]]
    fields: dict[str, Any]
    authorization: str | None
    received_at: float = field(default_factory=time.time)
    first_token_at: float | None = None
    last_byte_at: float | None = None
    ended_at: float | None = None  # answered to the end, broken off by us, or left by the client
    outcome: Outcome = "running"
    status: int = 200
    tokens: int = 0
    usage: dict[str, Any] | None = None
    usage_sent: bool = False
    traceparent: str | None = None


class RequestRefused(Exception):
    """A request that the real API would not accept."""

    def __init__(
        self, message: str, parameter: str | None = None, *, status: int = 400, code: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": parameter,
                "code": code or None,
            }
        }


def answer_text(tokens: int) -> str:
    """The text of a normal answer of so many tokens."""
    return "".join(_token(number) for number in range(tokens))


def _token(number: int) -> str:
    return f" tok{number}" if number else "tok0"


@dataclass(frozen=True)
class Behaviour:
    """What a model's name asks for."""

    kind: str
    first_token: float
    interval: float
    tokens: int
    usage: str
    finish: str
    more: dict[str, str]

    @classmethod
    def of(cls, model: str, schedule: Schedule) -> Behaviour:
        """Raises RequestRefused for a behaviour or a value that does not exist."""
        name, _, query = model.partition("?")
        if name != "fake" and not name.startswith("fake-"):
            name = "fake"
        kind = name.removeprefix("fake").removeprefix("-")
        if kind not in _PARAMETERS:
            raise RequestRefused(
                f"The model `{model}` does not exist", "model", status=404, code="model_not_found"
            )
        given = _PARAMETERS[kind] | dict(parse_qsl(query, keep_blank_values=True))
        try:
            return cls(
                kind=kind,
                first_token=float(given.pop("first_token", schedule.first_token)),
                interval=float(given.pop("interval", schedule.interval)),
                tokens=int(given.pop("tokens", schedule.tokens)),
                usage=given.pop("usage", "last"),
                finish=given.pop("finish", "stop"),
                more=given,
            )
        except ValueError as error:
            raise RequestRefused(f"The model `{model}` has a bad parameter: {error}", "model") from None


class FakeModel:
    """The server's state; `application()` serves it."""

    def __init__(self, schedule: Schedule = Schedule()) -> None:
        self._schedule = schedule
        self._books: deque[Entry] = deque(maxlen=_BOOKS_LENGTH)
        self._count = 0
        self._failures: Counter[str] = Counter()
        self._asked: Counter[tuple[str, str]] = Counter()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/_books", self.books)
        app.router.add_delete("/_books", self.forget)
        app.router.add_route("*", "/_trap", self.trap)
        return app

    async def models(self, request: web.Request) -> web.Response:
        names = ["fake", *(f"fake-{kind}" for kind in _PARAMETERS if kind)]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "nooble"} for name in names]
        return web.json_response({"object": "list", "data": data})

    async def books(self, request: web.Request) -> web.Response:
        """`?model=` gives only the requests of that exact name."""
        model = request.query.get("model")
        entries = [asdict(entry) for entry in self._books if model is None or entry.model == model]
        return web.Response(body=orjson.dumps({"requests": entries}), content_type="application/json")

    async def forget(self, request: web.Request) -> web.Response:
        self._books.clear()
        self._failures.clear()
        self._asked.clear()
        return web.Response(status=204)

    async def trap(self, request: web.Request) -> web.Response:
        """Where a redirect leads; whoever comes here stands in the books as the model `_trap`."""
        self._enter("_trap", {}, request)
        return web.Response(status=204)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        try:
            body = _checked(await request.read())
            behaviour = self._behaviour(body)
        except RequestRefused as refused:
            entry = self._enter("_refused", {}, request)
            entry.outcome, entry.status = "refused", refused.status
            return web.json_response(refused.body, status=refused.status)
        entry = self._enter(body["model"], body, request)
        try:
            return await self._answer(request, body, behaviour, entry)
        except (asyncio.CancelledError, ConnectionError):
            # The server cancels the handler, or refuses the write, when the client has gone.
            if entry.outcome == "running":
                entry.outcome = "cut"
            raise
        finally:
            entry.ended_at = time.time()

    def _enter(self, model: str, body: dict[str, Any], request: web.Request) -> Entry:
        self._count += 1
        fields = {key: value for key, value in body.items() if key not in ("model", "messages")}
        entry = Entry(
            self._count, model, body.get("messages", []), fields, request.headers.get("Authorization")
        )
        entry.traceparent = request.headers.get("traceparent")
        self._books.append(entry)
        return entry

    async def _answer(
        self, request: web.Request, body: dict[str, Any], behaviour: Behaviour, entry: Entry
    ) -> web.StreamResponse:
        if "status" in behaviour.more:
            return _failure(behaviour, entry)
        if behaviour.kind == "html":
            entry.outcome = "broken"
            return web.Response(text="<html><body>Bad gateway</body></html>", content_type="text/html")
        if behaviour.kind == "redirect":
            entry.outcome, entry.status = "refused", 307
            return web.Response(status=307, headers={"Location": "/_trap"})
        if behaviour.kind == "reset":
            entry.outcome = "broken"
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if behaviour.kind == "silent":
            await asyncio.sleep(_FOREVER)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        texts = _texts(body, behaviour)
        # An endless model is one that does not keep to the limit either.
        cut_short = limit is not None and len(texts) > limit and behaviour.kind != "endless"
        texts = texts[:limit] if cut_short else texts
        finish = "length" if cut_short else behaviour.finish
        prompt = sum(len(str(message.get("content")).split()) for message in body["messages"])
        entry.usage = {
            "prompt_tokens": prompt,
            "completion_tokens": len(texts),
            "total_tokens": prompt + len(texts),
        }
        if not body.get("stream") or behaviour.kind == "json":
            return await _whole(behaviour, entry, texts, finish)
        stream = _Stream(request, behaviour, entry)
        await stream.run(
            texts, finish, wants_usage=bool((body.get("stream_options") or {}).get("include_usage"))
        )
        return stream.response

    def _behaviour(self, body: dict[str, Any]) -> Behaviour:
        """What this request meets. Raises RequestRefused; see `Behaviour.of`."""
        model = body["model"]
        behaviour = Behaviour.of(model, self._schedule)
        fails = True
        if "rate" in behaviour.more:
            messages = json.dumps(body["messages"])
            self._asked[model, messages] += 1
            dice = random.Random(f"{self._asked[model, messages]} {messages}")
            fails = dice.random() < float(behaviour.more["rate"])
        elif "fail_times" in behaviour.more:
            self._failures[model] += 1
            fails = self._failures[model] <= int(behaviour.more["fail_times"])
        if fails:
            return behaviour
        # `more` is what only misbehaviours read.
        return replace(Behaviour.of(f"fake?{model.partition('?')[2]}", self._schedule), more={})


class _Stream:
    """One streamed answer."""

    def __init__(self, request: web.Request, behaviour: Behaviour, entry: Entry) -> None:
        self._request = request
        self._behaviour = behaviour
        self._entry = entry
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self.response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )

    async def run(self, texts: range | list[str], finish: str, *, wants_usage: bool) -> None:
        kind = self._behaviour.kind
        await self.response.prepare(self._request)
        if kind == "huge-line":
            await self._write_huge_line()
        if kind == "comments":
            await self._write_comments(self._behaviour.interval)
        if kind == "reasoning":
            await self._write_pieces(
                [_chunk({"reasoning_content": text}) for text in map(_token, range(len(texts)))]
            )
        stop_at = int(self._behaviour.more.get("at", len(texts) // 2)) if kind in _HALVES else len(texts)
        await self._write_tokens(texts, stop_at)
        if kind in _HALVES:
            await self._break()
            return
        tail = _chunk({}, finish=finish, x_groq=self._usage("x_groq"))
        if wants_usage and (usage := self._usage("last")) is not None:
            tail += _event({**_ENVELOPE, "choices": [], "usage": usage})
        if kind != "no-done":
            tail += b"data: [DONE]\n\n"
        await self._write(tail)
        self._entry.outcome = "finished"
        if kind == "hang":
            await asyncio.sleep(_FOREVER)
        await self.response.write_eof()

    async def _write(self, data: bytes) -> None:
        await self.response.write(data)
        self._entry.last_byte_at = time.time()

    async def _write_tokens(self, texts: range | list[str], count: int) -> None:
        behaviour, entry = self._behaviour, self._entry
        due = self._started + behaviour.first_token
        for position in range(count):
            text = texts[position]
            chunk = _chunk({"content": text}) if isinstance(text, str) else _token_chunk(text)
            # Sleeping also when late lets an endless answer be cut.
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            if position == 0:
                # The real API opens with the role; here it shares the first write.
                chunk = _ROLE_CHUNK + chunk
                entry.first_token_at = time.time()
            await self._write(chunk)
            entry.tokens += 1
            due += behaviour.interval

    async def _write_pieces(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            await asyncio.sleep(self._behaviour.interval)
            await self._write(chunk)

    async def _write_huge_line(self) -> None:
        left = int(self._behaviour.more["bytes"])
        await self._write(b'data: {"choices": [{"index": 0, "delta": {"content": "')
        while left > 0:
            await self._write(b"x" * min(left, 65_536))
            left -= 65_536
        await asyncio.sleep(_FOREVER)

    async def _write_comments(self, interval: float) -> None:
        while True:
            await self._write(b": still here\n\n")
            await asyncio.sleep(interval)

    async def _break(self) -> None:
        kind, more = self._behaviour.kind, self._behaviour.more
        if kind == "stall":
            if "comments" in more:
                await self._write_comments(float(more["comments"]))
            await asyncio.sleep(_FOREVER)
        self._entry.outcome = "broken"
        if kind == "cut":
            if self._request.transport is not None:
                self._request.transport.abort()
            return
        if kind == "garbage":
            event = bytes.fromhex(more["hex"]) if "hex" in more else more["text"].encode()
            await self._write(b"data: " + event + b"\n\n")
        if kind == "error":
            code: str | int = int(more["code"]) if more["code"].isdigit() else more["code"]
            error = {"message": "The server had an error", "type": more["type"], "code": code}
            await self._write(b"event: error\n" + _event({"error": error}))
        await self.response.write_eof()

    def _usage(self, place: str) -> Any:
        """What is said about usage in that place of the stream, or None."""
        wanted = self._behaviour.usage
        if wanted == "none" or (wanted == "x_groq") != (place == "x_groq"):
            return None
        if wanted in ("last", "x_groq"):
            self._entry.usage_sent = True
            usage = self._entry.usage
            return {"id": "req_fake", "usage": usage} if place == "x_groq" else usage
        return json.loads(wanted)


_ENVELOPE = {
    "id": "chatcmpl-fake",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "fake",
}


def _event(body: dict[str, Any]) -> bytes:
    # The standard library's JSON writes lone surrogates as escapes, as models' servers do.
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _chunk(delta: dict[str, Any], *, finish: str | None = None, x_groq: Any = None) -> bytes:
    body: dict[str, Any] = {
        **_ENVELOPE,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        "usage": None,
    }
    return _event(body if x_groq is None else {**body, "x_groq": x_groq})


_ROLE_CHUNK = _chunk({"role": "assistant", "content": ""})


@lru_cache(maxsize=4096)
def _token_chunk(number: int) -> bytes:
    return _chunk({"content": _token(number)})


def _texts(body: dict[str, Any], behaviour: Behaviour) -> range | list[str]:
    """The answer's tokens; a range stands for "tok0 tok1 …"."""
    if behaviour.kind == "echo":
        text = json.dumps(body["messages"], ensure_ascii=False)
        return [text[start : start + 8] for start in range(0, len(text), 8)]
    if behaviour.kind == "nul":
        return ["a\0b", "c\ud800d", "\udc00", "e"]
    return range(behaviour.tokens)


def _failure(behaviour: Behaviour, entry: Entry) -> web.Response:
    statuses = behaviour.more["status"].split(",")
    entry.outcome, entry.status = "refused", int(statuses[entry.id % len(statuses)])
    headers = {"Retry-After": behaviour.more["retry_after"]} if "retry_after" in behaviour.more else {}
    # Real servers quote the key they refuse, and so does this one.
    message = f"This model fails with {entry.status}; authorization was {entry.authorization}"
    error = {"message": message, "type": "fake_error", "param": None, "code": None}
    return web.json_response({"error": error}, status=entry.status, headers=headers)


async def _whole(behaviour: Behaviour, entry: Entry, texts: range | list[str], finish: str) -> web.Response:
    await asyncio.sleep(behaviour.first_token + behaviour.interval * max(0, len(texts) - 1))
    entry.tokens, entry.outcome, entry.last_byte_at = len(texts), "finished", time.time()
    entry.usage_sent = behaviour.usage != "none"
    content = "".join(text if isinstance(text, str) else _token(text) for text in texts)
    answer: dict[str, Any] = {
        **_ENVELOPE,
        "object": "chat.completion",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
        ],
    }
    if entry.usage_sent:
        answer["usage"] = entry.usage
    return web.json_response(answer)


def _checked(raw: bytes) -> dict[str, Any]:
    """The request's body. Raises RequestRefused where the real API answers 400."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise RequestRefused("We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise RequestRefused("The body must be an object.")
    if unknown := sorted(body.keys() - _KNOWN_FIELDS):
        raise RequestRefused(f"Unrecognized request argument supplied: {unknown[0]}", unknown[0])
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise RequestRefused("you must provide a model parameter", "model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRefused("'messages' must be an array of at least one message", "messages")
    for position, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or message.get("role") not in ("system", "developer", "user", "assistant", "tool")
            or not isinstance(message.get("content"), str | list)
        ):
            raise RequestRefused(f"Invalid value: 'messages[{position}]'", f"messages[{position}]")
    if not isinstance(body.get("stream", False), bool | None):
        raise RequestRefused("'stream' must be a boolean", "stream")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise RequestRefused("'stream_options' is only allowed when 'stream' is enabled", "stream_options")
    temperature = body.get("temperature")
    if temperature is not None and not (_is_number(temperature) and 0 <= temperature <= 2):
        raise RequestRefused("'temperature' must be a number from 0 to 2", "temperature")
    limits = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    if len(limits) == 2:
        raise RequestRefused("'max_tokens' and 'max_completion_tokens' exclude each other", "max_tokens")
    for name in limits:
        if type(body[name]) is not int or body[name] < 1:
            raise RequestRefused(f"'{name}' must be an integer of at least 1", name)
    return body


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


async def start(model: FakeModel, host: str = "127.0.0.1", port: int = 0) -> tuple[web.AppRunner, str]:
    """Serve on the running loop; gives what to `cleanup()` and the base URL, which ends in `/v1`."""
    # Cancelled handlers are how a client that left during a silence gets into the books.
    runner = web.AppRunner(
        model.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.5
    )
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner, f"http://{host}:{runner.addresses[0][1]}/v1"


async def _serve(arguments: argparse.Namespace) -> None:
    schedule = Schedule(arguments.first_token, arguments.interval, arguments.tokens)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stopped.set)
    runner, base_url = await start(FakeModel(schedule), arguments.host, arguments.port)
    ready: Path | None = arguments.ready_file
    if ready is not None:
        partial = ready.with_name(f"{ready.name}.{os.getpid()}")
        partial.write_text(json.dumps({"base_url": base_url, "pid": os.getpid()}))
        partial.replace(ready)
    print(base_url, flush=True)
    await stopped.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fake_model", description="A fake OpenAI server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--first-token", type=float, default=Schedule.first_token, help="seconds")
    parser.add_argument("--interval", type=float, default=Schedule.interval, help="seconds between tokens")
    parser.add_argument("--tokens", type=int, default=Schedule.tokens)
    parser.add_argument("--ready-file", type=Path, help="written when listening: base_url and pid as JSON")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
