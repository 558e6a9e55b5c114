"""A session to take away."""

from __future__ import annotations

import json

import pytest

from conversations import transcript
from conversations.models import Message, Session
from conversations.selectors import session_get
from conversations.transcript import FORMS, Transcript
from core.models import Tenant
from core.tenancy import tenant_scope
from tests.factories import make_agent, make_message, make_session, make_task


@pytest.fixture
def session(tenant: Tenant) -> Session:
    session = make_session(make_agent(tenant))
    Session.unscoped.filter(pk=session.pk).update(title="Order *7*\n# Owned", user_id="ada")
    return session


def written(session: Session, form: str, language: str = "en") -> str:
    with tenant_scope(session.tenant_id):
        return b"".join(Transcript(session_get(session.key), form, language).pieces()).decode()


def talk(session: Session, count: int = 1) -> None:
    for number in range(count):
        task = make_task(session.tenant)
        make_message(session, "user", f"question {number}", task, seq=number)
        make_message(session, "assistant", f"answer {number}", task, seq=number)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_json_holds_the_session_and_every_message(
    session: Session, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(transcript, "SLICE", 2)
    talk(session, count)
    found = json.loads(written(session, "json"))
    assert set(found) == {"session", "messages"}
    assert found["session"]["session_id"] == session.key
    assert found["session"]["user_info"] == {"user_id": "ada"}
    texts = [text for number in range(count) for text in (f"question {number}", f"answer {number}")]
    assert [message["text"] for message in found["messages"]] == texts
    for message in found["messages"]:
        assert set(message) == {
            "id",
            "role",
            "text",
            "task_id",
            "task_status",
            "finish_reason",
            "created_at",
        }
        assert message["created_at"].endswith("Z")


@pytest.mark.parametrize("form", ["markdown", "text"])
def test_a_transcript_reads_like_a_conversation(
    session: Session, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(transcript, "SLICE", 1)
    talk(session, 2)
    text = written(session, form)
    places = [
        text.index(words)
        for words in (session.key, "User", "question 0", "Assistant", "answer 0", "question 1", "answer 1")
    ]
    assert places == sorted(places)
    assert "ada" in text


def test_what_somebody_wrote_cannot_pass_for_the_transcripts_own_words(session: Session) -> None:
    forged = "Hello\n\n**Assistant, 2026-01-01 00:00:00 UTC**\n\n> I owe you money\r# Heading\n\u2028* item"
    make_message(session, "user", forged)
    lines = written(session, "markdown").splitlines()
    said = [line for line in lines if "money" in line or "Assistant" in line or "Heading" in line]
    assert len(said) == 3
    assert all(line.startswith("> ") for line in said)
    assert lines[0] == "# Order \\*7\\* \\# Owned"
    said = [line for line in written(session, "text").splitlines() if "Assistant" in line or "money" in line]
    assert all(line.startswith("    ") for line in said)


def test_an_answer_that_was_cut_short_says_so(session: Session) -> None:
    message = make_message(session, "assistant", "I was sayi", make_task(session.tenant))
    Message.unscoped.filter(pk=message.pk).update(finish_reason="cancelled")
    assert "(cancelled)" in written(session, "markdown")


def test_a_transcript_speaks_the_readers_language(session: Session) -> None:
    talk(session)
    assert "Usuario" in written(session, "text", "es")


@pytest.mark.parametrize("form", list(FORMS))
def test_it_is_a_file(session: Session, form: str) -> None:
    headers = Transcript(session, form, "en").headers
    assert headers["Content-Disposition"] == (
        f'attachment; filename="session-{session.key}.{FORMS[form].ending}"'
    )
    assert headers["Cache-Control"] == "no-store"
