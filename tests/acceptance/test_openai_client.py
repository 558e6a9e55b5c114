"""The official OpenAI client for Python, unchanged: a tenant's agents are its models."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from bench.fake_model import answer_text
from tests.acceptance.limited import REQUESTS, limited_key
from tests.acceptance.stack import FINAL, Stack, new_model, wait_for

HELLO: Any = [{"role": "user", "content": "Hello"}]


def client_of(stack: Stack, key: str, **options: Any) -> OpenAI:
    settings = {"base_url": f"{stack.base_url}/v1", "api_key": key, "max_retries": 0, **options}
    return OpenAI(**settings)


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    with client_of(stack, stack.demo.keys["chats"]) as made:
        yield made


@pytest.fixture(scope="module")
def agent_id(stack: Stack) -> str:
    return stack.agent("fake?tokens=12&interval=0.002")


def task_id(answer: Any) -> str:
    """The platform's own name of the run behind a completion."""
    found: str = answer.id.removeprefix("chatcmpl-")
    return found


def agents_slug(stack: Stack, agent_id: str) -> str:
    slug: str = stack.request("GET", f"/api/v1/agents/{agent_id}", key=stack.demo.key).json()["slug"]
    return slug


# --- Answers ----------------------------------------------------------------------------------------


def test_a_chat_is_completed(stack: Stack, client: OpenAI) -> None:
    model = new_model("fake?tokens=12")
    agent_id = stack.agent(model)
    answer = client.chat.completions.create(model=agent_id, messages=HELLO)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", answer_text(12))
    assert (choice.index, choice.finish_reason, answer.object, answer.model) == (
        0,
        "stop",
        "chat.completion",
        agent_id,
    )
    told = stack.model.entry(model)["usage"]
    assert answer.usage is not None
    assert answer.usage.model_dump(include=set(told)) == told
    assert answer.usage.accuracy == "exact"
    assert answer._request_id
    assert stack.finished(task_id(answer))["output"]["text"] == answer_text(12)


def test_a_chat_is_streamed(stack: Stack, client: OpenAI) -> None:
    model = new_model("fake?tokens=40&interval=0.004")
    chunks = list(
        client.chat.completions.create(
            model=stack.agent(model),
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *said, end, usage = chunks
    assert said[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == answer_text(40)
    assert len(said) > 3
    assert {chunk.choices[0].finish_reason for chunk in said} == {None}
    assert {chunk.usage for chunk in [*said, end]} == {None}
    assert end.choices[0].finish_reason == "stop"
    assert end.choices[0].delta.content is None
    told = stack.model.entry(model)["usage"]
    assert usage.choices == []
    assert usage.usage.model_dump(include=set(told)) == told
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].object == "chat.completion.chunk"


def test_a_stream_without_the_wish_tells_no_usage(client: OpenAI, agent_id: str) -> None:
    chunks = list(client.chat.completions.create(model=agent_id, messages=HELLO, stream=True))
    assert {chunk.usage for chunk in chunks} == {None}
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_clients_own_helper_reads_the_stream(client: OpenAI, agent_id: str) -> None:
    with client.chat.completions.stream(model=agent_id, messages=HELLO) as stream:
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == answer_text(12)


async def test_many_at_once(stack: Stack, agent_id: str) -> None:
    """More than the web process has threads: nobody holds one while it waits."""
    async with AsyncOpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.demo.key, max_retries=0) as client:
        slow = stack.agent("fake?tokens=5&first_token=1")

        async def streamed() -> str:
            chunks = await client.chat.completions.create(model=slow, messages=HELLO, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

        async def whole() -> str:
            answer = await client.chat.completions.create(model=slow, messages=HELLO)
            return answer.choices[0].message.content or ""

        texts = await asyncio.gather(*(streamed() for _ in range(30)), *(whole() for _ in range(30)))
    assert set(texts) == {answer_text(5)}


def test_what_was_said_before_is_sent_along(stack: Stack, client: OpenAI) -> None:
    agent_id = stack.agent("fake-echo", instructions="You are {{agent_name}}.")
    first = client.chat.completions.create(model=agent_id, messages=HELLO)
    conversation: Any = [
        {"role": "developer", "content": "Rhyme."},
        *HELLO,
        first.choices[0].message,
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    second = client.chat.completions.create(model=agent_id, messages=conversation)
    assert json.loads(second.choices[0].message.content or "") == [
        {"role": "system", "content": "You are Acceptance.\n\nRhyme."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "one\ntwo"},
    ]


def test_parameters_reach_the_model(stack: Stack, client: OpenAI) -> None:
    model = new_model("fake?tokens=50")
    answer = client.chat.completions.create(
        model=stack.agent(model),
        messages=HELLO,
        temperature=0.25,
        max_completion_tokens=3,
        stop=["END", "STOP"],
        user="ada",
        n=1,
        logprobs=False,
        top_p=1,
        store=True,
        metadata={"trace": "t-1"},
        service_tier="auto",
        response_format={"type": "text"},
    )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (answer_text(3), "length")
    fields = stack.model.entry(model)["fields"]
    assert (fields["temperature"], fields["stop"]) == (0.25, ["END", "STOP"])
    run = stack.request("GET", f"/api/v1/executions/{task_id(answer)}", key=stack.demo.key).json()
    assert (run["user_id"], run["metadata"]) == ("ada", {"trace": "t-1"})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_ends_before_a_stop_word(client: OpenAI, stack: Stack, stream: bool) -> None:
    """The fake model does not keep to it: the platform does."""
    agent_id = stack.agent("fake-endless?interval=0.002")
    text = "tok0 tok1 tok2 tok3 tok4"
    if stream:
        chunks = list(
            client.chat.completions.create(model=agent_id, messages=HELLO, stop=" tok5", stream=True)
        )
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert (said, chunks[-1].choices[0].finish_reason) == (text, "stop")
    else:
        [choice] = client.chat.completions.create(model=agent_id, messages=HELLO, stop=" tok5").choices
        assert (choice.message.content, choice.finish_reason) == (text, "stop")


# --- Models -----------------------------------------------------------------------------------------


def test_agents_are_models(stack: Stack, client: OpenAI, agent_id: str) -> None:
    slug = agents_slug(stack, agent_id)
    models = {model.id: model for model in client.models.list()}
    assert (models[slug].object, models[slug].owned_by) == ("model", "demo")
    assert client.models.retrieve(slug) == models[slug]
    assert client.models.retrieve(agent_id).created == models[slug].created
    answer = client.chat.completions.create(model=slug, messages=HELLO)
    assert (answer.model, answer.choices[0].message.content) == (slug, answer_text(12))


def test_a_draft_is_no_model(stack: Stack, client: OpenAI) -> None:
    slug = f"draft-{secrets.token_hex(4)}"
    config = {"provider": "scripted", "model": "echo"}
    body = {"name": "Draft", "type": "test", "slug": slug, "draft": True, "config": config}
    assert stack.request("POST", "/api/v1/agents", json=body, key=stack.demo.key).status_code == 201
    assert slug not in {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(slug)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=slug, messages=HELLO)


def test_another_tenants_agents_are_none(stack: Stack, agent_id: str) -> None:
    slug = agents_slug(stack, agent_id)
    with client_of(stack, stack.tenants["other"].key) as client:
        assert slug not in {model.id for model in client.models.list()}
        for name in (agent_id, slug):
            with pytest.raises(openai.NotFoundError) as absent:
                client.chat.completions.create(model=name, messages=HELLO)
            assert (absent.value.code, absent.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve(name)


# --- Errors -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"seed": 1}, "seed", "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
        ({"extra_body": {"colour": "red"}}, "colour", "unknown_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        (
            {"messages": [*HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[1].content[0].type",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "name": "ada"}]},
            "messages[0].name",
            "unsupported_parameter",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_agents_do_not_offer_is_refused(
    client: OpenAI, agent_id: str, fields: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(**{"model": agent_id, "messages": HELLO, **fields})
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.request_id


def test_an_unknown_model(client: OpenAI) -> None:
    for name in ("nobody", "01a1f858-0000-7000-8000-000000000000", "no slug"):
        with pytest.raises(openai.NotFoundError) as absent:
            client.chat.completions.create(model=name, messages=HELLO)
        assert (absent.value.code, absent.value.param) == ("model_not_found", "model")


def test_keys(stack: Stack, agent_id: str) -> None:
    for key in ("sk-nonsense", stack.demo.keys["revoked"]):
        with client_of(stack, key) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.chat.completions.create(model=agent_id, messages=HELLO)
            assert refused.value.code == "invalid_api_key"
    with client_of(stack, stack.demo.keys["reads agents"]) as client:
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(model=agent_id, messages=HELLO)
        with pytest.raises(openai.PermissionDeniedError):
            client.models.list()


def test_what_is_too_long(stack: Stack, client: OpenAI, agent_id: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=agent_id, messages=[{"role": "user", "content": "x" * 300_000}])
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")
    small = stack.agent("fake", context_tokens=256)
    with pytest.raises(openai.UnprocessableEntityError) as too_long:
        client.chat.completions.create(model=small, messages=[{"role": "user", "content": "word " * 400}])
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "messages")


def test_every_refusal_has_the_one_shape(stack: Stack, agent_id: str) -> None:
    key = stack.demo.key
    for method, path, options, status in (
        (
            "POST",
            "/v1/chat/completions",
            {"data": b"{", "headers": {"Content-Type": "application/json"}},
            400,
        ),
        ("POST", "/v1/chat/completions", {"json": []}, 400),
        ("POST", "/v1/chat/completions", {"json": {"model": "a\0b", "messages": HELLO}}, 422),
        ("POST", "/v1/chat/completions", {"data": b"x", "headers": {"Content-Type": "text/plain"}}, 415),
        ("GET", "/v1/chat/completions", {}, 405),
        ("GET", "/v1/models/nobody", {}, 404),
        ("POST", "/v1/embeddings", {"json": {}}, 404),
    ):
        response = stack.request(method, path, key=key, **options)  # type: ignore[arg-type]
        assert response.status_code == status, (path, response.text)
        body = response.json()
        assert set(body) == {"success", "error", "request_id"}
        assert set(body["error"]) == {"type", "message", "details", "param", "code"}
        assert body["error"]["code"]
    assert stack.request("GET", "/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("model", "status", "type_"),
    [
        ("fake-401", 502, "ProviderAuthenticationFailed"),
        ("fake-400", 502, "ProviderRejected"),
        ("fake-cut?tokens=6", 502, "ProviderUnavailable"),
    ],
    ids=["key", "request", "half"],
)
def test_a_run_that_fails(stack: Stack, client: OpenAI, model: str, status: int, type_: str) -> None:
    model = new_model(model)
    agent_id = stack.agent(model)
    patient = client.with_options(max_retries=3)  # it is told not to: the run has been tried again already
    with pytest.raises(openai.APIStatusError) as failed:
        patient.chat.completions.create(model=agent_id, messages=HELLO)
    assert (failed.value.status_code, failed.value.type, failed.value.code) == (status, type_, "server_error")
    assert len(stack.model.entries(model)) == 1
    with pytest.raises(openai.APIError) as broken:
        list(client.chat.completions.create(model=agent_id, messages=HELLO, stream=True))
    assert (broken.value.type, broken.value.code) == (type_, "server_error")


# --- The client goes away ---------------------------------------------------------------------------


def gone(stack: Stack, model: str) -> dict[str, Any]:
    """What became of the model's one request, once it is over."""
    wait_for(lambda: [entry["outcome"] for entry in stack.model.entries(model)], equal_to=["cut"])
    return stack.model.entry(model)


def test_a_stream_that_is_closed_cancels_the_run(stack: Stack, client: OpenAI) -> None:
    model = new_model("fake-endless?interval=0.005")
    with client.chat.completions.create(model=stack.agent(model), messages=HELLO, stream=True) as chunks:
        begun = [next(iter(chunks)) for _ in range(4)]
    gone(stack, model)
    status = stack.finished(task_id(begun[0]))
    assert (status["status"], status["output"]["usage"]["accuracy"]) == ("cancelled", "estimated")
    assert status["output"]["text"].startswith("tok0")


async def test_a_request_that_is_given_up_cancels_the_run(stack: Stack) -> None:
    model = new_model("fake-endless?interval=0.005")
    agent_id = stack.agent(model)
    async with AsyncOpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.demo.key, max_retries=0) as client:
        asked = asyncio.create_task(client.chat.completions.create(model=agent_id, messages=HELLO))
        await asyncio.to_thread(wait_for, lambda: stack.model.entries(model))
        asked.cancel()
        await asyncio.wait({asked})
    await asyncio.to_thread(gone, stack, model)
    assert await asyncio.to_thread(last_status, stack, agent_id) == "cancelled"


def last_status(stack: Stack, agent_id: str) -> str:
    """Of the agent's newest run, once it has ended."""

    def look() -> str:
        response = stack.request(
            "GET", "/api/v1/executions", params={"agent_id": agent_id}, key=stack.demo.key
        )
        status: str = response.json()["items"][0]["status"]
        return status

    wait_for(lambda: look() in FINAL)
    return look()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_is_gone_before_the_run_began_leaves_none(stack: Stack, stream: bool) -> None:
    model = new_model("fake")
    agent_id = stack.agent(model)
    with stack.agents_paused(), client_of(stack, stack.demo.key, timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            answer = client.chat.completions.create(model=agent_id, messages=HELLO, stream=stream)
            for _ in answer:
                pass
        assert last_status(stack, agent_id) == "cancelled"
    assert stack.model.entries(model) == []


def test_a_run_that_somebody_else_cancels_ends_its_completion(stack: Stack, client: OpenAI) -> None:
    model = new_model("fake-endless?interval=0.005")
    text, reason, usage = "", None, None
    for chunk in client.chat.completions.create(
        model=stack.agent(model), messages=HELLO, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            if choice.delta.content and not text:
                assert stack.cancel(task_id(chunk)).status_code == 200
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    assert (reason, usage is not None and usage.accuracy) == ("cancelled", "estimated")
    assert text.startswith("tok0")


def test_the_runs_task_answers_its_own_addresses(stack: Stack, client: OpenAI, agent_id: str) -> None:
    answer = client.chat.completions.create(model=agent_id, messages=HELLO)
    status = stack.finished(task_id(answer))
    assert (status["session_id"], status["status"]) == ("", "completed")
    assert stack.cancel(task_id(answer)).status_code == 409
    response = stack.request("GET", f"/api/v1/chat/stream/{task_id(answer)}")
    assert response.text.count("agent_execution_completed") == 1
    assert response.text.count("task_completed") == 1


# --- Limits -----------------------------------------------------------------------------------------


def test_a_rate_limit_is_seen(stack: Stack) -> None:
    with client_of(stack, limited_key(stack)) as client:
        with pytest.raises(openai.RateLimitError) as limited:
            for _ in range(4 * REQUESTS):
                client.models.list()
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["retry-after"]) >= 1
        assert limited.value.response.headers["x-ratelimit-remaining-requests"] == "0"
