"""One handler per action; found, never wired by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from django.test import override_settings

from core.actions import registry
from core.actions.registry import (
    all_handlers,
    build,
    can_handle,
    get_supported_actions,
    handler_of,
    handles,
)
from orchestrator.actions import ChatSendMessageAction
from tests.core.actions.conftest import EchoAction, LocalAction, NoteAction, works

pytestmark = pytest.mark.usefixtures("verbs")


def test_a_handler_is_found_by_its_action() -> None:
    function = handles(NoteAction)(lambda action: None)
    handler = handler_of(NoteAction())
    assert (handler.function, handler.atomic, handler.by_worker) == (function, True, False)
    assert can_handle("test.note")
    assert "test.note" in get_supported_actions()
    assert type(build("test.note", {})) is NoteAction


def test_a_second_handler_of_one_action_is_refused_and_the_first_one_stays() -> None:
    first = handles(NoteAction)(lambda action: None)
    for register in (handles(NoteAction), handles(NoteAction, atomic=False), works(NoteAction)):
        with pytest.raises(RuntimeError, match=r"test\.note has two handlers"):
            register(lambda action: None)
    assert handler_of(NoteAction()).function is first


def test_two_actions_cannot_share_a_name() -> None:
    class Impostor(LocalAction):
        verb = "chat.send_message"

    with pytest.raises(RuntimeError, match="two handlers"):
        handles(Impostor)(lambda action: None)
    [handler] = [found for found in all_handlers() if found.action.verb == "chat.send_message"]
    assert handler.action is ChatSendMessageAction


def test_unknown_names() -> None:
    assert not can_handle("test.nobody")
    with pytest.raises(KeyError):
        build("test.nobody", {})
    with pytest.raises(KeyError):
        handler_of(EchoAction())


def test_an_action_is_built_again_from_its_payload() -> None:
    handles(NoteAction)(lambda action: None)
    action = NoteAction(text="¿Qué tal? 🎈")
    again = build("test.note", action.payload())
    assert again == action.model_copy(update={"action_id": again.action_id})


def test_handlers_are_listed_by_name() -> None:
    names = [handler.action.verb for handler in all_handlers()]
    assert names == sorted(names) == get_supported_actions()


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import nooble_has_no_such_module", ModuleNotFoundError),
        ("from core.actions.registry import no_such_name", ImportError),
        ("1 / 0", ZeroDivisionError),
    ],
)
def test_discovery_hides_no_broken_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: type[Exception]
) -> None:
    package = tmp_path / "broken_app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "handlers.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(error), override_settings(INSTALLED_APPS=["broken_app"]):
        registry.discover()
    sys.modules.pop("broken_app", None)


def test_an_app_without_handlers_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "quiet_app"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with override_settings(INSTALLED_APPS=["quiet_app"]):
        registry.discover()
    sys.modules.pop("quiet_app", None)
