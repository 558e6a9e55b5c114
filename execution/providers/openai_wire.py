"""The OpenAI chat-completions wire, spoken directly: any compatible server is a provider.

This is the hot path of the platform, so the server-sent events are read as raw lines with
orjson from one shared aiohttp session. A token costs no task and no timer of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import socket
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import aiohttp
import orjson
from yarl import URL

from core import tracing
from core.outbound import AddressRefused, Allow, checked_connector
from execution.messages import Deadlines, Finished, FinishReason, ModelEvent, ModelRequest, TextDelta, Usage
from execution.providers.base import (
    DeadlineExceeded,
    ProviderAddressRefused,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderNotConfigured,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)

OutputLimitField = Literal["max_completion_tokens", "max_tokens"]

# Bytes of one line. Some proxies send the whole answer as one event, so it is generous.
_MAX_LINE = 1024 * 1024
# Characters of one answer: far above what models write, and a bound when no token limit was asked for.
_MAX_ANSWER = 2_000_000
# Tokens. A count above this is a provider's mistake, not a price.
_MAX_COUNT = 100_000_000
# Bytes of an error body that we read, and characters of it that reach the log.
_ERROR_BODY = 4096
_ERROR_DETAIL = 300
# Seconds for the body of an error answer, for what follows the finish reason (usage and the
# end mark), and for the end of the response after the end mark (so that the connection is reused).
_ERROR_WAIT = 1.0
_TAIL_WAIT = 2.0
_END_WAIT = 0.1
# Seconds for a list of models, and bytes of it: the longest that are known have about one million.
_LIST_WAIT = 10.0
_MAX_LIST = 8 * 1024 * 1024
# Seconds; no provider's Retry-After is believed beyond a day.
_MAX_RETRY_AFTER = 86_400.0
# Seconds an idle connection is kept, and before the kernel asks whether a silent peer lives.
_IDLE_CONNECTION = 30.0
_TCP_KEEPALIVE = 30

_SURROGATES = re.compile("[\ud800-\udfff]")
_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
}

# By loop, and for tenants' addresses by the networks that the operator has opened.
_sessions: dict[tuple[asyncio.AbstractEventLoop, Allow | None], aiohttp.ClientSession] = {}


def shared_session() -> aiohttp.ClientSession:
    """The running loop's session: one for all the operator's providers, with their connections and TLS."""
    return _session_of(
        None,
        lambda: aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_IDLE_CONNECTION, socket_factory=_socket_with_keepalive
        ),
    )


def checked_session(allow: Allow) -> aiohttp.ClientSession:
    """The running loop's session for tenants' addresses: public ones, and the networks in `allow`."""
    allow = tuple(allow)
    return _session_of(allow, lambda: checked_connector(allow, reuse_seconds=_IDLE_CONNECTION))


def _session_of(allow: Allow | None, connector: Callable[[], aiohttp.TCPConnector]) -> aiohttp.ClientSession:
    key = (asyncio.get_running_loop(), allow)
    session = _sessions.get(key)
    if session is None or session.closed:
        for dead in [known for known in list(_sessions) if known[0].is_closed()]:
            del _sessions[dead]
        session = _sessions[key] = aiohttp.ClientSession(
            connector=connector(), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )
    return session


async def close_shared_session() -> None:
    """Close the running loop's sessions and their connections."""
    loop = asyncio.get_running_loop()
    for key in [known for known in list(_sessions) if known[0] is loop]:
        await _sessions.pop(key).close()


def _socket_with_keepalive(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket on which a peer that vanished without a goodbye is found by the kernel."""
    family, kind, protocol, _, _ = address
    result = socket.socket(family=family, type=kind, proto=protocol)
    result.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        result.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _TCP_KEEPALIVE)
    return result


class OpenAIWire:
    """Any server that speaks `POST {base_url}/chat/completions` with `stream: true`.

    `output_limit` names the field that bounds the answer, because no single name works
    everywhere: OpenAI's reasoning models refuse `max_tokens`; Ollama reads only `max_tokens`
    and ignores `max_completion_tokens` without a word, Mistral answers it with 422; OpenAI
    refuses both together. So the vendors' own addresses get `max_completion_tokens` and every
    other server `max_tokens`, the name all of them read. In any case pieces are counted here
    too: a server that ignores the limit is cut off with the reason `length`.

    How long it waits (`Deadlines`, all from the start of the call or of the wait): only what the
    model generates ends a wait, be it answer or reasoning. Comment lines that keep a connection
    open do not. Time in which the consumer does not ask for the next event is not the
    provider's silence, but counts towards the total.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None,
        *,
        output_limit: OutputLimitField = "max_tokens",
        session: Callable[[], aiohttp.ClientSession] = shared_session,
    ) -> None:
        self.name = name
        self._url = _endpoint(base_url, "chat/completions")
        self._list_url = _endpoint(base_url, "models")
        self._api_key = api_key
        self._output_limit = output_limit
        self._session = session
        self._headers = {
            "Accept": "text/event-stream",
            # Compressed tokens would wait in the compressor's buffer.
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "nooble",
        }
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise ProviderNotConfigured("the API key holds characters that no HTTP header can carry")
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.endpoint = hashlib.blake2b(f"{self._url}\0{api_key}".encode(), digest_size=16).hexdigest()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The answer as it arrives; see `Provider`."""
        watch = _Watch(request.deadlines)
        response = await self._send(request, watch)
        try:
            if response.status != 200 or response.content_type in ("application/json", "text/html"):
                raise await _refusal(response)
            answer = _Answer(request.max_output_tokens)
            content = response.content
            watch.guard(content)
            rest = b""
            heard = 0
            closing = False
            while not answer.ended:
                watch.waiting = True
                try:
                    data = await content.readany()
                except _Expired as expired:
                    if answer.reason is not None:
                        break
                    raise expired.error(before_first_token=answer.length == 0) from None
                except (aiohttp.ClientError, OSError) as error:
                    if answer.reason is not None:
                        break
                    raise ProviderUnavailable(
                        f"the stream was cut: {_name(error)}", before_first_token=answer.length == 0
                    ) from None
                watch.waiting = False
                if not data:
                    break
                if rest:
                    data = rest + data
                lines = data.split(b"\n")
                rest = lines.pop()
                if len(rest) > _MAX_LINE:
                    raise answer.unreadable(f"a line of more than {_MAX_LINE} bytes")
                for line in lines:
                    text = answer.read(line)
                    if text:
                        yield TextDelta(text)
                    if answer.ended:
                        break
                if answer.reason is not None:
                    if not closing:
                        closing = True
                        watch.wait(_TAIL_WAIT, move_timer=True)
                elif answer.generated != heard:
                    # The first generated piece ends the longer wait, so the timer has to move nearer.
                    watch.wait(watch.between_tokens, move_timer=heard == 0)
                    heard = answer.generated
            if answer.reason is None:
                raise answer.unreadable("the stream ended without a finish reason")
            if answer.complete:
                await _drain(content, watch)
            yield Finished(answer.reason, answer.usage)
        except ProviderError as error:
            self._forget_key(error)
            raise
        finally:
            watch.stop()
            # A response that was read to its end has given its connection back; any other is closed.
            response.close()

    async def models(self) -> frozenset[str] | None:
        """What `GET {base_url}/models` lists; see `Provider`."""
        failure: ProviderError
        try:
            async with asyncio.timeout(_LIST_WAIT):
                return await self._listed()
        except ProviderError as error:
            failure = error
        except TimeoutError:
            failure = ProviderTimeout(f"no list of models within {_LIST_WAIT:g} s")
        except aiohttp.ClientResponseError:
            failure = ProviderProtocolError("not an HTTP answer")
        except (aiohttp.ClientError, OSError) as error:
            failure = _no_connection(error)
        # Raised here, outside the except blocks: an aiohttp error holds the request with its headers.
        raise failure

    async def _listed(self) -> frozenset[str] | None:
        headers = {name: value for name, value in self._headers.items() if name != "Accept"}
        async with self._session().get(self._list_url, headers=headers, allow_redirects=False) as response:
            if response.status in (404, 405, 501):
                return None  # a server that keeps no list
            if response.status != 200:
                raise _error_of_status(response.status, f"HTTP {response.status} to the list of models")
            body = bytearray()
            while len(body) <= _MAX_LIST and (part := await response.content.readany()):
                body += part
        return _names_of(body)

    async def _send(self, request: ModelRequest, watch: _Watch) -> aiohttp.ClientResponse:
        """Send the request and wait for the answer's headers."""
        try:
            body = orjson.dumps(self._body(request))
        except orjson.JSONEncodeError as error:
            raise ProviderRejected(f"the request cannot be written as JSON: {error}") from None
        failure: ProviderError
        trace = tracing.header()
        try:
            async with asyncio.timeout_at(watch.next_bound()):
                return await self._session().post(
                    self._url,
                    data=body,
                    headers=self._headers | {tracing.HEADER: trace} if trace else self._headers,
                    allow_redirects=False,  # a key never follows a redirect
                    timeout=aiohttp.ClientTimeout(total=None, connect=request.deadlines.connect),
                )
        except aiohttp.ConnectionTimeoutError:
            failure = ProviderTimeout(f"no connection within {request.deadlines.connect:g} s")
        except aiohttp.ClientResponseError as error:
            failure = ProviderProtocolError("not an HTTP answer", said=error.message[:_ERROR_DETAIL])
        except aiohttp.ClientError as error:
            failure = _no_connection(error)
        except TimeoutError:
            failure = watch.expired().error(before_first_token=True)
        except OSError as error:
            failure = _no_connection(error)
        # Raised here, outside the except blocks: an aiohttp error holds the request with its headers.
        self._forget_key(failure)
        raise failure

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_output_tokens is not None:
            body[self._output_limit] = request.max_output_tokens
        if request.stop:
            body["stop"] = list(request.stop)
        return body

    def _forget_key(self, error: ProviderError) -> None:
        """Some servers quote the key that they refuse; the log must not."""
        if self._api_key and self._api_key in error.said:
            error.said = error.said.replace(self._api_key, "[key]")


class _Answer:
    """What the lines of one stream have said so far."""

    __slots__ = ("complete", "ended", "generated", "length", "limit", "reason", "usage")

    def __init__(self, limit: int | None) -> None:
        self.limit = math.inf if limit is None else limit
        self.generated = 0  # pieces of answer or reasoning: at most as many as there are tokens
        self.length = 0  # characters of answer
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.complete = False  # the end mark was read
        self.ended = False  # no line after this one matters

    def read(self, line: bytes) -> str:
        """Take in one line; the answer's text in it, or an empty string."""
        if line[:5] != b"data:":
            # Blank lines, comments, and fields that this protocol does not use.
            if line[:1] in (b"{", b"<"):
                raise self.unreadable("not a server-sent event", line)
            return ""
        payload = line[5:]
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            if payload.strip() == b"[DONE]":
                self.complete = self.ended = True
                if self.reason is None:
                    self.reason = "stop"
                return ""
            chunk = self._load_leniently(payload)
        if type(chunk) is not dict:
            raise self.unreadable("an event that is not an object", payload)
        if chunk.get("error") is not None:
            raise _error_in_stream(chunk["error"], before_first_token=self.length == 0)
        if (usage := chunk.get("usage")) is not None or (
            "x_groq" in chunk and (usage := _groq_usage(chunk["x_groq"])) is not None
        ):
            self.usage = _usage(usage)
        choices = chunk.get("choices")
        if not choices and (choices is not None or usage is not None):
            return ""  # an empty list: usage, or a notice
        try:
            choice = choices[0]
            reason = choice.get("finish_reason")
            delta = choice.get("delta") or {}
            text = delta.get("content") or ""
            if not text and (delta.get("reasoning_content") or delta.get("reasoning")):
                self.generated += 1
        except (AttributeError, KeyError, TypeError):
            raise self.unreadable("an event of another shape", payload) from None
        if type(text) is not str or not (reason is None or type(reason) is str):
            raise self.unreadable("an event of another shape", payload)
        if text:
            self.generated += 1
            if "\0" in text:
                text = text.replace("\0", "\ufffd")
            self.length += len(text)
        if self.generated > self.limit or self.length > _MAX_ANSWER:
            self.reason = "length"
            self.ended = True
            self.usage = None  # what was reported on the way is not the whole
            return ""
        if reason:
            self.reason = _FINISH_REASONS.get(reason, "stop")
        return text

    def unreadable(self, detail: str, quoted: bytes = b"") -> ProviderProtocolError:
        """The error for something that is not the protocol, at this point of the stream."""
        said = repr(quoted[:80]) if quoted else ""
        return ProviderProtocolError(detail, said=said, before_first_token=self.length == 0)

    def _load_leniently(self, payload: bytes) -> Any:
        """JSON with lone surrogates, which models do send and orjson refuses."""
        try:
            return json.loads(payload.decode(), object_pairs_hook=_without_surrogates)
        except (ValueError, RecursionError):
            raise self.unreadable("not JSON", payload) from None


class _Watch:
    """One timer for a whole stream.

    It stands at a bound that was right when it was set; when it rings too early it moves to the
    present bound. So a token costs an assignment, and no timer is made or cancelled for it.
    """

    __slots__ = ("_content", "_due", "_loop", "_timer", "_total_at", "between_tokens", "waiting")

    def __init__(self, deadlines: Deadlines) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._total_at = now + deadlines.total
        self._due = now + deadlines.first_token
        self.between_tokens = deadlines.between_tokens
        self.waiting = False  # for the provider; not while the consumer is busy with what it got
        self._content: aiohttp.StreamReader | None = None
        self._timer: asyncio.TimerHandle | None = None

    def next_bound(self) -> float:
        """The loop time at which the present wait has lasted too long."""
        return min(self._due, self._total_at)

    def guard(self, content: aiohttp.StreamReader) -> None:
        """Break reads of `content` from now on."""
        self._content = content
        self._timer = self._loop.call_at(self.next_bound(), self._ring)

    def wait(self, seconds: float, *, move_timer: bool) -> None:
        """Begin a new wait; `move_timer` when it ends earlier than the one before."""
        self._due = self._loop.time() + seconds
        if move_timer and self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_at(self.next_bound(), self._ring)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def expired(self) -> _Expired:
        """Which of the bounds has passed."""
        return _Expired(total=self._loop.time() >= self._total_at)

    def _ring(self) -> None:
        now = self._loop.time()
        if self._content is None:
            return
        if now >= self._total_at or (self.waiting and now >= self._due):
            self._content.set_exception(self.expired())
            return
        bound = self._due if self.waiting else now + self.between_tokens
        self._timer = self._loop.call_at(min(bound, self._total_at), self._ring)


class _Expired(Exception):
    """A bound of the watch has passed."""

    def __init__(self, *, total: bool) -> None:
        super().__init__()
        self._total = total

    def error(self, *, before_first_token: bool) -> ProviderError:
        if self._total:
            return DeadlineExceeded("the call passed its total time", before_first_token=before_first_token)
        awaited = "the first token" if before_first_token else "the next token"
        return ProviderTimeout(f"{awaited} did not come in time", before_first_token=before_first_token)


async def _drain(content: aiohttp.StreamReader, watch: _Watch) -> None:
    """Read what follows the end mark, so that the connection can serve the next call."""
    watch.wait(_END_WAIT, move_timer=True)
    watch.waiting = True
    try:
        while await content.readany():
            pass
    except (_Expired, aiohttp.ClientError, OSError):
        return  # the answer is whole; only this connection is lost


async def _refusal(response: aiohttp.ClientResponse) -> ProviderError:
    """The error that an answer other than a stream means."""
    body = await _start_of_body(response)
    text = " ".join(body.decode(errors="replace").split())[:_ERROR_DETAIL]
    if response.status == 200:
        stated = _stated_error(body)
        return stated or ProviderProtocolError(f"not a stream but {response.content_type}", said=text)
    retry_after = _retry_after(response.headers.get("Retry-After"))
    return _error_of_status(response.status, f"HTTP {response.status}", retry_after, said=text)


async def _start_of_body(response: aiohttp.ClientResponse) -> bytes:
    """What an error answer says, as far as it comes quickly; at most `_ERROR_BODY` bytes."""
    body = b""
    try:
        async with asyncio.timeout(_ERROR_WAIT):
            while len(body) < _ERROR_BODY and (part := await response.content.readany()):
                body += part
    except (TimeoutError, aiohttp.ClientError, OSError):
        pass  # the status alone has to do
    return body[:_ERROR_BODY]


def _endpoint(base_url: str, path: str) -> URL:
    try:
        url = URL(base_url)
    except ValueError:
        raise ProviderNotConfigured("the base URL is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ProviderNotConfigured("the base URL is not an http(s) URL")
    return url / path if url.path.endswith("/") else URL(f"{url}/{path}")


def _names_of(body: bytes | bytearray) -> frozenset[str]:
    """The ids in a list of models. Raises ProviderProtocolError."""
    if len(body) > _MAX_LIST:
        raise ProviderProtocolError(f"a list of models of more than {_MAX_LIST} bytes")
    try:
        models = orjson.loads(body)["data"]
        return frozenset(str(model["id"]) for model in models)
    except (ValueError, KeyError, TypeError):
        raise ProviderProtocolError("not a list of models") from None


def _no_connection(error: aiohttp.ClientError | OSError) -> ProviderError:
    reason = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(reason, AddressRefused):
        return ProviderAddressRefused("the base URL leads to an address that is not public")
    return ProviderUnavailable(f"no connection: {_name(error)}")


def _name(error: BaseException) -> str:
    """An error for the log by its kind and the system's reason, without addresses or headers."""
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _error_of_status(
    status: int,
    detail: str,
    retry_after: float | None = None,
    *,
    said: str = "",
    before_first_token: bool = True,
) -> ProviderError:
    kind: type[ProviderError]
    if status in (401, 403):
        kind = ProviderAuthenticationFailed
    elif status == 429:
        kind = ProviderRateLimited
    elif 400 <= status < 500:
        kind = ProviderRejected
    elif status >= 500:
        kind = ProviderUnavailable
    else:
        kind = ProviderProtocolError  # among them redirects, which are never followed
    return kind(detail, said=said, before_first_token=before_first_token, retry_after=retry_after)


# What servers put into `code` or `type` of an error inside a stream; anything else is their failure.
_STATUS_OF_CODE = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "tokens": 429,
    "requests": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "model_not_found": 404,
}


def _error_in_stream(error: object, *, before_first_token: bool) -> ProviderError:
    """An error object that came as an event, after the status 200 had been sent."""
    if not isinstance(error, dict):
        return ProviderUnavailable(
            "an error in the stream", said=str(error)[:_ERROR_DETAIL], before_first_token=before_first_token
        )
    status = 500
    for key in ("type", "code", "status"):
        value = error.get(key)
        if isinstance(value, str):
            status = int(value) if re.fullmatch("[45][0-9]{2}", value) else _STATUS_OF_CODE.get(value, status)
        elif isinstance(value, int) and 400 <= value < 600:
            status = value
    said = str(error.get("message"))[:_ERROR_DETAIL]
    detail = f"an error in the stream ({status})"
    return _error_of_status(status, detail, said=said, before_first_token=before_first_token)


def _stated_error(text: bytes) -> ProviderError | None:
    """The error in a body of status 200, if it is one."""
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict) or body.get("error") is None:
        return None
    return _error_in_stream(body["error"], before_first_token=True)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        # A date of unknown zone ("-0000") is UTC by the RFC.
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _MAX_RETRY_AFTER)


def _groq_usage(extension: object) -> object:
    return extension.get("usage") if isinstance(extension, dict) else None


def _usage(reported: object) -> Usage | None:
    """What the provider reported, or None when it cannot be true."""
    if not isinstance(reported, dict):
        return None
    prompt = _count(reported.get("prompt_tokens"))
    completion = _count(reported.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    details = reported.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
    return Usage(prompt, completion, cached_tokens=min(cached or 0, prompt))


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_COUNT else None


def _without_surrogates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {
        key: _SURROGATES.sub("\ufffd", value) if isinstance(value, str) else value for key, value in pairs
    }
