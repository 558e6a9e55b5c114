"""Which handler answers which action.

Handlers are found by their module's name (`handlers`, in every app) and named by `@handles`;
nothing is wired by hand, and a broken import stops the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from django.utils.module_loading import autodiscover_modules

from core.actions.base import Action, Settlement

Abandoned = Callable[[Any, Any], Settlement]  # (action, task)


@dataclass(frozen=True, slots=True)
class Handler:
    """`atomic` handlers run inside a transaction; the others open their own.

    `by_worker` handlers take `(action, task)` and return a Settlement: only a worker can run them.
    `abandoned` says what is left of an attempt whose worker died: the `result` and `write` of its
    settlement are used, the status is the sweeper's.
    """

    action: type[Action[Any]]
    function: Callable[..., Any]
    atomic: bool
    by_worker: bool
    abandoned: Abandoned | None = None


_handlers: dict[str, Handler] = {}


F = TypeVar("F", bound=Callable[..., Any])


def handles(action: type[Action[Any]], *, atomic: bool = True) -> Callable[[F], F]:
    """Register the decorated function as the one handler of `action`: `(action) -> Result`."""
    return _register(action, atomic=atomic, by_worker=False)


def works(action: type[Action[Any]], *, abandoned: Abandoned) -> Callable[[F], F]:
    """Like `handles`, for work that only a worker does: `(action, task) -> Settlement`, no transaction."""
    return _register(action, atomic=False, by_worker=True, abandoned=abandoned)


def _register(
    action: type[Action[Any]], *, atomic: bool, by_worker: bool, **options: Any
) -> Callable[[F], F]:
    def register(function: F) -> F:
        known = _handlers.get(action.verb)
        if known is not None:
            raise RuntimeError(f"{action.verb} has two handlers: {known.function} and {function}")
        _handlers[action.verb] = Handler(action, function, atomic, by_worker, **options)
        return function

    return register


def discover() -> None:
    """Import every app's handlers."""
    autodiscover_modules("handlers")


def handler_of(action: Action[Any]) -> Handler:
    return _handlers[action.verb]


def build(name: str, payload: dict[str, Any]) -> Action[Any]:
    """The action that was stored as `(name, payload)`. Raises KeyError for an unknown name."""
    return _handlers[name].action(**payload)


def can_handle(name: str) -> bool:
    return name in _handlers


def get_supported_actions() -> list[str]:
    return sorted(_handlers)


def all_handlers() -> list[Handler]:
    return [_handlers[name] for name in get_supported_actions()]
