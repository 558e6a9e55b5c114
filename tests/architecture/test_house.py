"""The rules that hold the house together, read from the code itself."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.db import models

from core.actions.base import Action, Result
from core.actions.registry import all_handlers, can_handle
from core.events.base import Event, EventData
from core.models import TenantModel
from core.queues.names import ALIASES, DOMAINS, QueueName
from core.tenancy import NoTenantScope, TenantManager
from execution.events import RunProgress

ROOT = Path(settings.BASE_DIR)
FLOORS = (
    "nooble",
    "orchestrator",
    "workflows",
    "execution",
    "conversations",
    "agents",
    "tools",
    "knowledge",
    "core",
)
NOT_SHIPPED = {"tests", "bench", "pages"}

# Tables that belong to no tenant: who the tenants are, and what all of them may share. An audit entry of
# what is theirs has none either; `objects` fails closed all the same.
OF_NO_TENANT = {"core.AuditEntry", "core.ModelPrice", "core.Tenant", "core.Tier", "agents.AgentTemplate"}

# Imports inside functions, each with its reason in the code.
LATE_IMPORTS = {"nooble/apps.py"}

# Starts something when it is imported, or needs an extra that is not there.
NOT_IMPORTED = [".migrations", ".asgi", ".run", ".settings"]
if importlib.util.find_spec("opentelemetry") is None:
    NOT_IMPORTED.append("core.otel")


def sources() -> list[Path]:
    return [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def modules() -> Iterator[ModuleType]:
    """Every module of the house, but for what starts something when it is imported."""
    for floor in FLOORS:
        package = importlib.import_module(floor)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{floor}."):
            if not any(part in found.name for part in NOT_IMPORTED):
                yield importlib.import_module(found.name)


def ours(kind: type[Any]) -> list[type[Any]]:
    """Every class of the house below `kind`."""
    list(modules())

    def below(parent: type[Any]) -> set[type[Any]]:
        return {parent}.union(*(below(child) for child in parent.__subclasses__()))

    found = {child for child in below(kind) if child.__module__.split(".")[0] in FLOORS}
    return sorted(found, key=lambda child: f"{child.__module__}.{child.__qualname__}")


def verbs() -> list[type[Action[Any]]]:
    """The public actions: those that have a name."""
    return [action for action in ours(Action) if "verb" in action.__dict__ and "[" not in action.__name__]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_stands_on_a_floor() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - NOT_SHIPPED == set(FLOORS)
    linter = project()["tool"]["importlinter"]
    assert linter["root_packages"] == list(FLOORS)
    floors = [contract for contract in linter["contracts"] if contract["name"].startswith("Floors")]
    assert [contract["layers"] for contract in floors] == [list(FLOORS)]


def test_every_package_says_what_it_is() -> None:
    for floor in FLOORS:
        assert (importlib.import_module(floor).__doc__ or "").strip()


def verdict(config: Path, tmp_path: Path) -> str:
    """The linter's count of contracts, in a process of its own: it wants a house nobody has entered."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = ["--config", str(config), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-c", command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    counts = [line for line in done.stdout.splitlines() if line.startswith("Contracts: ")]
    assert len(counts) == 1, done.stdout + done.stderr
    return counts[0]


def test_every_package_looks_only_down(tmp_path: Path) -> None:
    contracts = len(project()["tool"]["importlinter"]["contracts"])
    assert verdict(ROOT / "pyproject.toml", tmp_path) == f"Contracts: {contracts} kept, 0 broken."


def test_the_linter_would_notice(tmp_path: Path) -> None:
    """The same floors upside down are refused."""
    upside_down = tmp_path / "upside.toml"
    upside_down.write_text(
        f"""
        [tool.importlinter]
        root_packages = {list(FLOORS)}
        [[tool.importlinter.contracts]]
        name = "Upside down"
        type = "layers"
        layers = {list(reversed(FLOORS))}
        """
    )
    assert verdict(upside_down, tmp_path) == "Contracts: 0 kept, 1 broken."


def tables() -> list[type[models.Model]]:
    return [model for model in apps.get_models() if model._meta.app_label in FLOORS]


def test_every_table_has_a_tenant_but_for_a_known_few() -> None:
    without = {model._meta.label for model in tables() if not issubclass(model, TenantModel)}
    assert without == OF_NO_TENANT


@pytest.mark.parametrize("model", [model for model in tables() if issubclass(model, TenantModel)])
def test_a_tenants_table_fails_closed(model: type[TenantModel]) -> None:
    tenant = model._meta.get_field("tenant")
    assert isinstance(tenant, models.ForeignKey)
    assert not tenant.null
    assert tenant.remote_field.on_delete is models.CASCADE
    assert type(model.objects) is TenantManager
    with pytest.raises(NoTenantScope):
        model.objects.all()
    assert type(model.unscoped) is models.Manager
    assert model._meta.default_manager is model.unscoped
    assert {manager.name for manager in model._meta.managers} == {"objects", "unscoped"}


def test_every_action_has_one_handler_and_every_handler_an_action_of_ours() -> None:
    actions = verbs()
    assert len(actions) >= 10
    for action in actions:
        assert can_handle(action.verb), action
    handled = [handler.action for handler in all_handlers()]
    assert sorted(handled, key=str) == sorted(actions, key=str)


def test_handlers_stand_on_their_actions_floor() -> None:
    for handler in all_handlers():
        floor = handler.action.__module__.split(".")[0]
        assert handler.function.__module__.startswith(f"{floor}.handlers")


@pytest.mark.parametrize("action", verbs(), ids=lambda action: action.verb)
def test_actions_are_frozen_closed_and_well_named(action: type[Action[Any]]) -> None:
    assert action.model_config["frozen"] is True
    assert action.model_config["extra"] == "forbid"
    assert action.__name__.endswith("Action")
    assert action.__doc__
    domain, _, verb = action.verb.partition(".")
    assert domain.replace("_", "").isalpha()
    assert verb.replace("_", "").isalpha()


def test_queued_actions_go_to_domains_that_workers_consume() -> None:
    queued = [action for action in verbs() if action.queue is not None]
    assert {action.verb for action in queued} >= {"agent.execute", "websocket.send_message"}
    for action in queued:
        domain, name = action.queue
        assert domain in DOMAINS
        QueueName.parse(f"{domain}:demo:{name}:{action.default_priority.word}")


def test_the_service_documents_names_of_queues_lead_to_queues() -> None:
    """Of the domains that nothing waits in yet, to all that will wait there."""
    ours = {action.queue for action in verbs() if action.queue is not None}
    meant = {meaning for meaning in ALIASES.values() if not isinstance(meaning, str)}
    used = {domain for domain, _ in ours}
    assert len(meant) == 5
    for domain, action in meant:
        assert (domain, action) in ours if domain in used else (domain in DOMAINS and not action)


@pytest.mark.parametrize("kind", [Result, Event, EventData])
def test_what_crosses_a_border_is_frozen(kind: type[Any]) -> None:
    classes = ours(kind)
    assert len(classes) > 1
    for shape in classes:
        assert shape.model_config["frozen"] is True
        if kind is not Result:
            # What services say of their progress is theirs to choose.
            assert shape.model_config["extra"] == ("allow" if issubclass(shape, RunProgress) else "forbid")


def test_every_handlers_module_is_discovered() -> None:
    found = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sources()
        if path.stem == "handlers" or path.parent.name == "handlers"
    ]
    assert "orchestrator.handlers.websocket" in found
    for name in found:
        assert name in sys.modules, name
    assert {handler.function.__module__ for handler in all_handlers()} <= set(found)


def test_no_model_is_fetched_by_its_name() -> None:
    for path in sources():
        if "migrations" not in path.parts:
            names = [
                node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
            ]
            assert "get_model" not in names, path


def late_imports(source: str) -> list[int]:
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [
        node.lineno
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def test_imports_stand_at_the_top() -> None:
    assert late_imports("def f():\n    import os\n") == [2]
    late = {str(path.relative_to(ROOT)) for path in sources() if late_imports(path.read_text())}
    assert late == LATE_IMPORTS


def test_nothing_is_called_utils_or_helpers() -> None:
    assert not [path for path in sources() if path.stem in ("utils", "helpers", "signals", "misc")]
