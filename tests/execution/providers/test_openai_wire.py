"""The wire against real servers: what it asks, what it reads, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import pytest

from bench.fake_model import answer_text
from execution.messages import ChatMessage, Deadlines, Finished, ModelRequest, TextDelta, Usage
from execution.providers import openai_wire
from execution.providers.base import (
    DeadlineExceeded,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderNotConfigured,
    ProviderProtocolError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
)
from execution.providers.openai_wire import OpenAIWire
from tests.execution.conftest import TOKENS, Fake
from tests.execution.providers.conftest import RawServer

KEY = "sk-secret-of-the-tenant"
SHORT = Deadlines(connect=0.2, first_token=0.2, between_tokens=0.2, total=5)
HELLO = (ChatMessage("system", "Be brief."), ChatMessage("user", "Hello there"))


def request(model: str = "fake", **changes: Any) -> ModelRequest:
    return ModelRequest(model, HELLO, **{"deadlines": Deadlines(total=10), **changes})


def wire(base_url: str, **options: Any) -> OpenAIWire:
    return OpenAIWire("openai", base_url, KEY, **options)


async def answer(provider: OpenAIWire, asked: ModelRequest) -> tuple[str, Finished]:
    """The whole text and the last event; every event before it must be a piece of text."""
    events = [event async for event in provider.stream(asked)]
    last = events.pop()
    assert isinstance(last, Finished)
    pieces = [event.text for event in events if isinstance(event, TextDelta)]
    assert len(pieces) == len(events)
    assert all(pieces)
    return "".join(pieces), last


async def failure(provider: OpenAIWire, asked: ModelRequest) -> tuple[str, ProviderError]:
    """The text until the failure, and the failure."""
    text = ""
    with pytest.raises(ProviderError) as caught:
        async for event in provider.stream(asked):
            assert isinstance(event, TextDelta)
            text += event.text
    assert caught.value.before_first_token == (text == "")
    return text, caught.value


class TestRequest:
    async def test_carries_the_conversation_and_the_key(self, fake: Fake) -> None:
        await answer(wire(fake.base_url), request(temperature=0.5))
        entry = await fake.ended("fake")
        assert entry["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello there"},
        ]
        assert entry["authorization"] == f"Bearer {KEY}"
        assert entry["fields"] == {
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
        }

    async def test_without_a_key_has_no_authorization(self, fake: Fake) -> None:
        await answer(OpenAIWire("openai", fake.base_url, None), request())
        assert (await fake.ended("fake"))["authorization"] is None

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    async def test_names_the_output_limit_as_the_server_reads_it(self, fake: Fake, name: Any) -> None:
        text, last = await answer(wire(fake.base_url, output_limit=name), request(max_output_tokens=4))
        assert (text, last.reason) == (answer_text(4), "length")
        assert (await fake.ended("fake"))["fields"][name] == 4

    async def test_keeps_text_that_json_must_escape(self, fake: Fake) -> None:
        messages = (ChatMessage("user", 'Grüße, "世界" \\ \n\t 🎈 {{name}} %s'),)
        text, _ = await answer(wire(fake.base_url), ModelRequest("fake-echo", messages))
        assert json.loads(text) == [{"role": "user", "content": messages[0].content}]

    async def test_a_message_that_no_json_can_hold_is_rejected(self, fake: Fake) -> None:
        asked = ModelRequest("fake", (ChatMessage("user", "\ud800"),))
        _, error = await failure(wire(fake.base_url), asked)
        assert type(error) is ProviderRejected

    @pytest.mark.parametrize("suffix", ["", "/"])
    async def test_base_url_may_end_with_a_slash(self, fake: Fake, suffix: str) -> None:
        assert (await answer(wire(fake.base_url + suffix), request()))[0] == answer_text(TOKENS)

    @pytest.mark.parametrize(
        "base_url", ["", "localhost:11434/v1", "file:///etc/passwd", "http://", "http://[::"]
    )
    def test_a_base_url_that_is_none_is_refused(self, base_url: str) -> None:
        with pytest.raises(ProviderNotConfigured):
            wire(base_url)

    @pytest.mark.parametrize("key", ["a\r\nX-Evil: 1", "ключ", "a\0b"])
    def test_a_key_that_no_header_can_carry_is_refused(self, key: str) -> None:
        with pytest.raises(ProviderNotConfigured) as caught:
            OpenAIWire("openai", "http://127.0.0.1:9/v1", key)
        assert key not in str(caught.value)


class TestAnswer:
    async def test_is_whole_and_in_order_with_exact_usage(self, fake: Fake) -> None:
        text, last = await answer(wire(fake.base_url), request())
        assert text == answer_text(TOKENS)
        assert last == Finished("stop", Usage(prompt_tokens=4, completion_tokens=TOKENS))
        entry = await fake.ended("fake")
        assert (entry["outcome"], entry["tokens"]) == ("finished", TOKENS)

    async def test_fifty_at_once_do_not_mix(self, fake: Fake) -> None:
        provider = wire(fake.base_url)
        models = [f"fake?tokens={20 + number}&interval=0.001" for number in range(50)]
        answers = await asyncio.gather(*(answer(provider, request(model)) for model in models))
        assert [text for text, _ in answers] == [answer_text(20 + number) for number in range(50)]

    @pytest.mark.parametrize(
        ("finish", "reason"),
        [
            ("stop", "stop"),
            ("length", "length"),
            ("content_filter", "content_filter"),
            ("tool_calls", "stop"),
            ("end_turn", "stop"),
        ],
    )
    async def test_finish_reasons(self, fake: Fake, finish: str, reason: str) -> None:
        _, last = await answer(wire(fake.base_url), request(f"fake?finish={finish}"))
        assert last.reason == reason

    async def test_usage_in_the_place_of_groq(self, fake: Fake) -> None:
        _, last = await answer(wire(fake.base_url), request("fake?usage=x_groq"))
        assert last.usage == Usage(prompt_tokens=4, completion_tokens=TOKENS)

    async def test_cached_tokens(self, fake: Fake) -> None:
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 7}}
        _, last = await answer(wire(fake.base_url), request(f"fake?usage={quote(json.dumps(usage))}"))
        assert last.usage == Usage(prompt_tokens=9, completion_tokens=2, cached_tokens=7)

    @pytest.mark.parametrize("cached", [-1, 1e9, "many", None, True, 50])
    async def test_absurd_cached_tokens_are_clamped(self, fake: Fake, cached: object) -> None:
        usage = {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        _, last = await answer(wire(fake.base_url), request(f"fake?usage={quote(json.dumps(usage))}"))
        assert last.usage is not None
        assert last.usage.cached_tokens in (0, 9)

    @pytest.mark.parametrize(
        "usage",
        [
            "none",
            "{}",
            "[]",
            '"many"',
            '{"prompt_tokens": -1, "completion_tokens": 5}',
            '{"prompt_tokens": 5, "completion_tokens": -5}',
            '{"prompt_tokens": 5}',
            '{"prompt_tokens": 1e3, "completion_tokens": 5}',
            '{"prompt_tokens": true, "completion_tokens": 5}',
            '{"prompt_tokens": 5, "completion_tokens": 99999999999999999999}',
        ],
    )
    async def test_usage_that_cannot_be_true_is_no_usage(self, fake: Fake, usage: str) -> None:
        text, last = await answer(wire(fake.base_url), request(f"fake?usage={quote(usage)}"))
        assert (text, last) == (answer_text(TOKENS), Finished("stop", None))

    async def test_nul_and_lone_surrogates_become_replacement_characters(self, fake: Fake) -> None:
        text, _ = await answer(wire(fake.base_url), request("fake-nul"))
        assert text == "a\ufffdbc\ufffdd\ufffde"

    async def test_reasoning_is_life_but_not_text(self, fake: Fake) -> None:
        model = f"fake-reasoning?tokens={TOKENS}&interval=0.1"
        text, _ = await answer(wire(fake.base_url), request(model, deadlines=SHORT))
        assert text == answer_text(TOKENS)

    async def test_without_the_end_mark(self, fake: Fake) -> None:
        text, last = await answer(wire(fake.base_url), request("fake-no-done"))
        assert (text, last.reason) == (answer_text(TOKENS), "stop")

    async def test_with_the_end_mark_only(self, raw: RawServer, sse: Callable[..., bytes]) -> None:
        raw.answers(sse('{"choices":[{"delta":{"content":"a"}}]}', "[DONE]"))
        assert await answer(wire(raw.base_url), request()) == ("a", Finished("stop", None))

    async def test_cut_after_the_finish_reason_is_whole(self, raw: RawServer) -> None:
        event = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 5000\r\n\r\n"
        raw.answers(head + event)
        assert await answer(wire(raw.base_url), request()) == ("a", Finished("stop", None))

    async def test_silence_after_the_finish_reason_is_short(
        self, raw: RawServer, sse: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_wire, "_TAIL_WAIT", 0.1)
        raw.answers(sse('{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}'), close=False)
        started = time.monotonic()
        assert await answer(wire(raw.base_url), request()) == ("a", Finished("stop", None))
        assert time.monotonic() - started < 1

    async def test_chatter_after_the_finish_reason_is_short(
        self, raw: RawServer, sse: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_wire, "_TAIL_WAIT", 0.1)

        async def chatter(writer: asyncio.StreamWriter) -> None:
            writer.write(sse('{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}'))
            while not writer.is_closing():
                writer.write(b'data: {"choices":[]}\n\n')
                await asyncio.sleep(0.01)

        raw.script = chatter
        async with asyncio.timeout(2):
            assert await answer(wire(raw.base_url), request()) == ("a", Finished("stop", None))

    async def test_a_response_that_never_ends_after_the_end_mark(self, fake: Fake) -> None:
        started = time.monotonic()
        text, last = await answer(wire(fake.base_url), request("fake-hang"))
        assert (text, last.usage) == (answer_text(TOKENS), Usage(4, TOKENS))
        assert time.monotonic() - started < 1

    async def test_any_split_of_the_bytes_and_any_line_end(self, raw: RawServer) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        events = (
            ': hello\r\nevent: message\r\nid: 7\r\ndata:{"choices":[{"delta":{"role":"assistant"}}]}\r\n\r\n'
            'data: {"choices":[{"delta":{"content":"世界 🎈"}}]}\r\n\r\n'
            'data: {"choices":[{"delta":{"content":"\\ud83c\\udf88"},"finish_reason":"stop"}]}\n\n'
            "data: [DONE]\r\n\r\n"
        ).encode()
        raw.answers(head, *(events[at : at + 1] for at in range(len(events))))
        assert (await answer(wire(raw.base_url), request()))[0] == "世界 🎈🎈"

    async def test_an_empty_answer(self, raw: RawServer, sse: Callable[..., bytes]) -> None:
        raw.answers(sse('{"choices":[{"delta":{},"finish_reason":"stop"}]}', "[DONE]"))
        assert await answer(wire(raw.base_url), request()) == ("", Finished("stop", None))

    async def test_connections_are_used_again(self, raw: RawServer) -> None:
        events = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(events)}\r\n\r\n"
        raw.answers(head.encode() + events, close=False)
        for _ in range(3):
            assert (await answer(wire(raw.base_url), request()))[0] == "a"
        assert raw.connections == 1

    async def test_connections_are_used_again_when_the_response_ends_later(self, raw: RawServer) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        event = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        raw.answers(head, b"%x\r\n%s\r\n" % (len(event), event), *[b""] * 20, b"0\r\n\r\n", close=False)
        for _ in range(3):
            assert (await answer(wire(raw.base_url), request()))[0] == "a"
        assert raw.connections == 1

    async def test_the_environments_proxies_are_not_used(
        self, fake: Fake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert (await answer(wire(fake.base_url), request()))[0] == answer_text(TOKENS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, ProviderRejected),
            (401, ProviderAuthenticationFailed),
            (403, ProviderAuthenticationFailed),
            (404, ProviderRejected),
            (413, ProviderRejected),
            (422, ProviderRejected),
            (429, ProviderRateLimited),
            (500, ProviderUnavailable),
            (502, ProviderUnavailable),
            (503, ProviderUnavailable),
        ],
    )
    async def test_statuses(self, fake: Fake, status: int, kind: type[ProviderError]) -> None:
        text, error = await failure(wire(fake.base_url), request(f"fake-{status}"))
        assert (text, type(error)) == ("", kind)
        assert f"HTTP {status}" in error.detail
        assert KEY not in error.said + error.detail + str(error)

    async def test_the_key_is_in_no_traceback(self, fake: Fake, raw: RawServer) -> None:
        raw.answers(f"Bearer {KEY} to you too\r\n\r\n".encode())
        for provider, model in ((wire(fake.base_url), "fake-401"), (wire(raw.base_url), "fake")):
            with pytest.raises(ProviderError) as caught:
                await answer(provider, request(model))
            assert KEY not in "".join(traceback.format_exception(caught.value, chain=True)) + repr(
                caught.value
            )
            assert caught.value.__context__ is None or KEY not in repr(caught.value.__context__)

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [("2", 2.0), ("0.5", 0.5), ("-3", 0.0), ("99999999", 86_400.0), ("nan", None), ("soon", None)],
    )
    async def test_retry_after_in_seconds(self, fake: Fake, header: str, seconds: float | None) -> None:
        _, error = await failure(wire(fake.base_url), request(f"fake-429?retry_after={header}"))
        assert error.retry_after == seconds

    @pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
    async def test_retry_after_as_a_date(self, fake: Fake, zone: str) -> None:
        moment = format_datetime(datetime.now(UTC) + timedelta(seconds=60)).replace("+0000", zone)
        _, error = await failure(wire(fake.base_url), request(f"fake-503?retry_after={quote(moment)}"))
        assert error.retry_after == pytest.approx(60, abs=5)

    async def test_no_retry_after(self, fake: Fake) -> None:
        _, error = await failure(wire(fake.base_url), request("fake-429"))
        assert error.retry_after is None

    async def test_the_next_call_after_a_refusal_succeeds(self, fake: Fake) -> None:
        provider = wire(fake.base_url)
        assert type((await failure(provider, request("fake-429-once")))[1]) is ProviderRateLimited
        assert (await answer(provider, request("fake-429-once")))[0] == answer_text(TOKENS)

    async def test_a_redirect_is_not_followed(self, fake: Fake) -> None:
        _, error = await failure(wire(fake.base_url), request("fake-redirect"))
        assert type(error) is ProviderProtocolError
        assert await fake.entries("_trap") == []
        assert len(await fake.entries("fake-redirect")) == 1

    async def test_an_error_body_that_never_ends(
        self, raw: RawServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_wire, "_ERROR_WAIT", 0.1)
        raw.answers(b"HTTP/1.1 500 Oops\r\nContent-Length: 9999\r\n\r\nbroken", close=False)
        _, error = await failure(wire(raw.base_url), request())
        assert (type(error), error.detail) == (ProviderUnavailable, "HTTP 500")
        assert error.said == "broken"

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            ('{"error": {"message": "no such model", "type": "invalid_request_error"}}', ProviderRejected),
            ('{"error": "overloaded"}', ProviderUnavailable),
            ('{"choices": []}', ProviderProtocolError),
            ("{", ProviderProtocolError),
        ],
    )
    async def test_status_200_with_json(
        self, raw: RawServer, sse: Callable[..., bytes], body: str, kind: type[ProviderError]
    ) -> None:
        raw.answers(sse(content_type="application/json") + body.encode())
        assert type((await failure(wire(raw.base_url), request()))[1]) is kind

    @pytest.mark.parametrize("model", ["fake-html", "fake-json"])
    async def test_status_200_without_a_stream(self, fake: Fake, model: str) -> None:
        assert type((await failure(wire(fake.base_url), request(model)))[1]) is ProviderProtocolError


class TestBrokenStreams:
    async def test_cut_in_the_middle(self, fake: Fake) -> None:
        text, error = await failure(wire(fake.base_url), request("fake-cut"))
        assert type(error) is ProviderUnavailable
        assert answer_text(TOKENS // 2).startswith(text)  # a reset may overtake what was written before

    async def test_cut_before_the_first_token(self, fake: Fake) -> None:
        text, error = await failure(wire(fake.base_url), request("fake-cut?at=0"))
        assert (text, type(error)) == ("", ProviderUnavailable)

    @pytest.mark.parametrize("at", [0, 3])
    async def test_ended_without_a_finish_reason(self, fake: Fake, at: int) -> None:
        text, error = await failure(wire(fake.base_url), request(f"fake-end?at={at}"))
        assert (text, type(error)) == (answer_text(at), ProviderProtocolError)

    @pytest.mark.parametrize(
        ("code", "type_", "kind"),
        [
            ("server_error", "server_error", ProviderUnavailable),
            ("429", "", ProviderRateLimited),
            ("502", "server_error", ProviderUnavailable),
            ("rate_limit_exceeded", "requests", ProviderRateLimited),
            ("invalid_api_key", "invalid_request_error", ProviderAuthenticationFailed),
            ("context_length_exceeded", "invalid_request_error", ProviderRejected),
            ("brand_new_code", "brand_new_type", ProviderUnavailable),
        ],
    )
    async def test_error_in_the_stream(
        self, fake: Fake, code: str, type_: str, kind: type[ProviderError]
    ) -> None:
        text, error = await failure(wire(fake.base_url), request(f"fake-error?code={code}&type={type_}"))
        assert (text, type(error)) == (answer_text(TOKENS // 2), kind)

    @pytest.mark.parametrize("error", ['"busy"', "[]", "7", '{"code": null}', '{"code": [1], "message": {}}'])
    async def test_error_of_another_shape(self, fake: Fake, error: str) -> None:
        event = quote(f'{{"error": {error}}}')
        text, failed = await failure(wire(fake.base_url), request(f"fake-garbage?text={event}"))
        assert (text, type(failed)) == (answer_text(TOKENS // 2), ProviderUnavailable)

    @pytest.mark.parametrize(
        "event",
        [
            '{"choices": [',
            "",
            "null",
            "7",
            "[]",
            '"text"',
            "{}",
            '{"choices": null}',
            '{"choices": "abc"}',
            '{"choices": {"0": 1}}',
            '{"choices": 7}',
            '{"choices": [null]}',
            '{"choices": [7]}',
            '{"choices": [[]]}',
            '{"choices": [{"delta": "text"}]}',
            '{"choices": [{"delta": [1]}]}',
            '{"choices": [{"delta": {"content": 7}}]}',
            '{"choices": [{"delta": {"content": {"text": "a"}}}]}',
            '{"choices": [{"delta": {"content": ["a"]}}]}',
            '{"choices": [{"delta": {"content": "a"}, "finish_reason": 7}]}',
            '{"choices": [{"delta": {"content": "\\ud800"}, "finish_reason": ["stop"]}]}',
            "[" * 100_000,
            '{"a":' * 100_000,
            "[DONE",
        ],
        ids=lambda event: event[:40] or "empty",
    )
    @pytest.mark.parametrize("at", [0, 3])
    async def test_garbage(self, raw: RawServer, sse: Callable[..., bytes], event: str, at: int) -> None:
        tokens = [f'{{"choices":[{{"delta":{{"content":"t{number}"}}}}]}}' for number in range(at)]
        raw.answers(sse(*tokens, event, "[DONE]"))
        text, error = await failure(wire(raw.base_url), request())
        assert (text, type(error)) == ("".join(f"t{number}" for number in range(at)), ProviderProtocolError)

    @pytest.mark.parametrize(
        "octets", ["ff", "7b226122", "efbbbf7b7d", "c0af", "227bed", "0000", "22eda08022"]
    )
    async def test_bytes_that_are_not_text(self, fake: Fake, octets: str) -> None:
        _, error = await failure(wire(fake.base_url), request(f"fake-garbage?hex={octets}"))
        assert type(error) is ProviderProtocolError

    async def test_no_event_raises_anything_else(self, fake: Fake) -> None:
        """Good events with random damage: each gives an answer or an error with a name."""
        dice = random.Random(7)
        good = (
            b'{"choices":[{"index":0,"delta":{"content":"a\\u0000\\ud800"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":1,"completion_tokens":2},"x_groq":{"usage":null},"error":null}'
        )
        pieces = [
            b"null",
            b"7",
            b'"',
            b"[",
            b"]",
            b"{",
            b"}",
            b"-1",
            b"1e999",
            b"\\u0000",
            b"\xff",
            b"true",
            b"",
        ]
        provider = wire(fake.base_url)
        for _ in range(300):
            start = dice.randrange(len(good))
            damaged = good[:start] + dice.choice(pieces) + good[start + dice.randrange(12) :]
            with contextlib.suppress(ProviderError):
                await answer(provider, request(f"fake-garbage?hex={damaged.hex()}"))

    async def test_a_line_without_an_end(self, fake: Fake) -> None:
        _, error = await failure(wire(fake.base_url), request("fake-huge-line"))
        assert type(error) is ProviderProtocolError
        assert len(error.detail) < 200

    async def test_a_long_line_is_an_answer(self, raw: RawServer, sse: Callable[..., bytes]) -> None:
        text = "x" * 500_000
        raw.answers(
            sse(f'{{"choices":[{{"delta":{{"content":"{text}"}},"finish_reason":"stop"}}]}}', "[DONE]")
        )
        assert (await answer(wire(raw.base_url), request()))[0] == text

    @pytest.mark.parametrize(
        "answered",
        [
            b"garbage\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01",
            b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        ],
        ids=["text", "tls", "header", "long header"],
    )
    async def test_what_is_not_http(self, raw: RawServer, answered: bytes) -> None:
        raw.answers(answered)
        _, error = await failure(wire(raw.base_url), request())
        assert type(error) is ProviderProtocolError

    async def test_bad_chunks_of_http(self, raw: RawServer) -> None:
        raw.answers(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"zz\r\noops"
        )
        _, error = await failure(wire(raw.base_url), request())
        assert isinstance(error, ProviderUnavailable | ProviderProtocolError)

    async def test_compression_that_is_none(self, raw: RawServer) -> None:
        raw.answers(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"
            b"Connection: close\r\n\r\nnot gzip at all"
        )
        _, error = await failure(wire(raw.base_url), request())
        assert isinstance(error, ProviderUnavailable | ProviderProtocolError)

    async def test_closed_without_an_answer(self, raw: RawServer) -> None:
        raw.answers()
        assert type((await failure(wire(raw.base_url), request()))[1]) is ProviderUnavailable

    async def test_nobody_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        _, error = await failure(wire(f"http://127.0.0.1:{port}/v1"), request())
        assert type(error) is ProviderUnavailable
        await openai_wire.close_shared_session()

    async def test_a_name_that_does_not_exist(self) -> None:
        _, error = await failure(wire("http://nowhere.invalid/v1"), request())
        assert isinstance(error, ProviderUnavailable | ProviderTimeout)
        assert "nowhere" not in error.message
        await openai_wire.close_shared_session()

    async def test_plain_http_where_tls_was_asked_for(self, fake: Fake) -> None:
        _, error = await failure(wire(fake.base_url.replace("http:", "https:")), request())
        assert type(error) is ProviderUnavailable


class TestDeadlines:
    async def test_connect(self) -> None:
        # A full backlog lets no further connection through, and does not refuse it either.
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            _, error = await failure(
                wire(base_url), request(deadlines=Deadlines(connect=0.2, first_token=5, total=5))
            )
        assert type(error) is ProviderTimeout
        assert "connection" in error.detail
        await openai_wire.close_shared_session()

    @pytest.mark.parametrize(
        "model", ["fake-silent", "fake-stall?at=0", "fake-slow-first", "fake-comments?interval=0.02"]
    )
    async def test_first_token(self, fake: Fake, model: str) -> None:
        started = time.monotonic()
        text, error = await failure(wire(fake.base_url), request(model, deadlines=SHORT))
        assert (text, type(error)) == ("", ProviderTimeout)
        assert 0.2 <= time.monotonic() - started < 1
        assert (await fake.ended(model))["outcome"] == "cut"

    @pytest.mark.parametrize("model", ["fake-stall", "fake-stall?comments=0.02"])
    async def test_between_tokens(self, fake: Fake, model: str) -> None:
        # The wait for the first token is far longer: the timer has to come nearer with that token.
        deadlines = Deadlines(first_token=60, between_tokens=0.2, total=60)
        started = time.monotonic()
        text, error = await failure(wire(fake.base_url), request(model, deadlines=deadlines))
        assert (text, type(error)) == (answer_text(TOKENS // 2), ProviderTimeout)
        assert 0.2 <= time.monotonic() - started < 1
        assert (await fake.ended(model))["outcome"] == "cut"

    async def test_tokens_in_time_are_never_too_late(self, fake: Fake) -> None:
        text, _ = await answer(
            wire(fake.base_url), request("fake?interval=0.1&first_token=0.1&tokens=8", deadlines=SHORT)
        )
        assert text == answer_text(8)

    async def test_total(self, fake: Fake) -> None:
        deadlines = Deadlines(total=0.3)
        text, error = await failure(
            wire(fake.base_url), request("fake-endless?interval=0.01", deadlines=deadlines)
        )
        assert type(error) is DeadlineExceeded
        assert text
        assert (await fake.ended("fake-endless?interval=0.01"))["outcome"] == "cut"

    @pytest.mark.parametrize("model", ["fake-silent", "fake-stall?at=0"])
    async def test_total_before_the_first_token(self, fake: Fake, model: str) -> None:
        _, error = await failure(wire(fake.base_url), request(model, deadlines=Deadlines(total=0.2)))
        assert type(error) is DeadlineExceeded

    async def test_a_slow_consumer_is_not_a_silent_provider(self, fake: Fake) -> None:
        text = ""
        async for event in wire(fake.base_url).stream(request("fake?interval=0.02", deadlines=SHORT)):
            if isinstance(event, TextDelta):
                text += event.text
                if event.text == "tok0":
                    await asyncio.sleep(0.5)  # longer than any wait for the provider may last
        assert text == answer_text(TOKENS)

    async def test_the_total_counts_while_the_consumer_is_busy(self, fake: Fake) -> None:
        text = ""
        with pytest.raises(DeadlineExceeded):
            async for event in wire(fake.base_url).stream(
                request("fake-endless?interval=0.01", deadlines=Deadlines(total=0.2))
            ):
                if isinstance(event, TextDelta) and not text:
                    await asyncio.sleep(0.4)
                text += getattr(event, "text", "")

    @pytest.mark.parametrize("model", ["fake-endless", "fake-endless?interval=0.001"])
    async def test_an_endless_answer_is_cut_at_the_limit(self, fake: Fake, model: str) -> None:
        text, last = await answer(wire(fake.base_url), request(model, max_output_tokens=30))
        assert (text, last) == (answer_text(30), Finished("length", None))
        assert (await fake.ended(model))["outcome"] == "cut"

    async def test_usage_told_on_the_way_is_not_that_of_an_answer_we_cut(
        self, raw: RawServer, sse: Callable[..., bytes]
    ) -> None:
        event = '{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
        raw.answers(sse(*[event] * 9))
        text, last = await answer(wire(raw.base_url), request(max_output_tokens=3))
        assert (text, last) == ("aaa", Finished("length", None))

    async def test_an_endless_answer_without_a_limit_is_cut_too(
        self, fake: Fake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_wire, "_MAX_ANSWER", 1000)
        text, last = await answer(wire(fake.base_url), request("fake-endless"))
        assert last.reason == "length"
        assert 990 <= len(text) <= 1000


class TestLeaving:
    async def test_aclose_closes_the_connection(self, fake: Fake) -> None:
        stream = wire(fake.base_url).stream(request("fake-endless?interval=0.005"))
        assert isinstance(await anext(stream), TextDelta)
        await stream.aclose()
        entry = await fake.ended("fake-endless?interval=0.005")
        assert entry["outcome"] == "cut"
        assert entry["tokens"] < 10

    @pytest.mark.parametrize(
        "model", ["fake-silent", "fake-stall?at=0", "fake-stall", "fake-endless?interval=0.01"]
    )
    async def test_cancelling_the_task_closes_the_connection(self, fake: Fake, model: str) -> None:
        task = asyncio.create_task(answer(wire(fake.base_url), request(model)))
        await fake.entry(
            model, lambda entry: entry["tokens"] >= (0 if "at=0" in model or "silent" in model else 3)
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await fake.ended(model))["outcome"] == "cut"

    async def test_a_failure_closes_the_connection(self, raw: RawServer, sse: Callable[..., bytes]) -> None:
        raw.answers(sse("garbage"), close=False)
        await failure(wire(raw.base_url), request())
        await asyncio.wait_for(raw.closed.wait(), 5)
