"""Resume tokens."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest
from django.core import signing
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from orchestrator import access
from orchestrator.access import TOKEN_SECONDS, Resume

slugs = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)
sessions = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
seqs = st.integers(0, 2**53)


@given(slugs, sessions, seqs)
def test_a_token_opens_what_it_was_made_for(tenant: str, session: str, seq: int) -> None:
    resume = Resume(tenant, session, seq)
    token = resume.token()
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", token)
    assert Resume.verify(token, tenant, session) == resume
    assert Resume.verify(token, None, session) == resume


@hypothesis_settings(max_examples=300)
@given(st.data())
def test_a_token_with_any_character_changed_opens_nothing(data: st.DataObject) -> None:
    token = Resume("demo", "s-1", 7).token()
    position = data.draw(st.integers(0, len(token) - 1))
    replacement = data.draw(st.text(max_size=2).filter(lambda text: text != token[position]))
    tampered = token[:position] + replacement + token[position + 1 :]
    assert Resume.verify(tampered, "demo", "s-1") is None
    assert Resume.verify(tampered, None, "s-1") is None


@given(st.text(max_size=80))
def test_what_is_no_token_opens_nothing(text: str) -> None:
    assert Resume.verify(text, None, "s-1") is None


@given(slugs, sessions)
def test_another_session_or_tenant_is_not_opened(tenant: str, session: str) -> None:
    token = Resume("demo", "s-1", 7).token()
    if session != "s-1":
        assert Resume.verify(token, "demo", session) is None
        assert Resume.verify(token, None, session) is None
    if tenant != "demo":
        assert Resume.verify(token, tenant, "s-1") is None


def test_a_token_is_good_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    made = time.time()
    now = [made]
    monkeypatch.setattr(access, "time", SimpleNamespace(time=lambda: now[0]))
    token = Resume("demo", "s-1", 7).token()
    now[0] = made + TOKEN_SECONDS - 1
    assert Resume.verify(token, "demo", "s-1") is not None
    now[0] = made + TOKEN_SECONDS + 1
    assert Resume.verify(token, "demo", "s-1") is None


def test_what_was_signed_for_another_purpose_opens_nothing() -> None:
    words = f"demo.s-1.0.{int(time.time()) + 60}"
    assert Resume.verify(signing.Signer(sep="~", salt="nooble.other").sign(words), "demo", "s-1") is None
    assert Resume.verify(signing.Signer(sep="~").sign(words), "demo", "s-1") is None


def test_another_secret_key_signs_nothing_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    token = Resume("demo", "s-1", 7).token()
    stranger = signing.Signer(key="another-key" * 4, sep="~", salt="nooble.resume")
    monkeypatch.setattr(access, "_signer", stranger)
    assert Resume.verify(token, "demo", "s-1") is None
