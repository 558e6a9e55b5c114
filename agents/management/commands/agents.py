"""Move agents: out of a tenant as a document, and into one."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import orjson
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from pydantic import ValidationError

from agents.actions import AgentImportAction
from agents.document import AgentDocument
from agents.selectors import agent_document, agent_named
from core.actions.bus import execute
from core.api.errors import named
from core.api.parsers import parse_json
from core.errors import MalformedRequest, NoobleError
from core.models import Tenant
from core.tenancy import across_tenants, tenant_scope

STREAM = "-"


class Command(BaseCommand):
    help = "Export an agent as JSON, or import exported ones."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        exported = verbs.add_parser("export", help="write one agent as a document")
        exported.add_argument("agent", help="its id or its slug")
        exported.add_argument("--output", default=STREAM, help="a file; without it, standard output")
        imported = verbs.add_parser("import", help="make agents of documents: all of them, or none")
        imported.add_argument("files", nargs="*", default=[STREAM], help="without any, standard input")
        for verb in (exported, imported):
            verb.add_argument("--tenant", required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        with across_tenants():
            is_known = Tenant.objects.filter(pk=options["tenant"]).exists()
        if not is_known:
            raise CommandError(f"no tenant is called {options['tenant']}")
        try:
            with tenant_scope(options["tenant"]):
                if options["verb"] == "export":
                    self._export(options["agent"], options["output"])
                else:
                    self._import(options["files"])
        except NoobleError as error:
            raise CommandError(_told(error)) from error

    def _export(self, agent: str, output: str) -> None:
        document = agent_document(agent_named(agent))
        text = orjson.dumps(document.model_dump(mode="json"), option=orjson.OPT_INDENT_2).decode()
        if output == STREAM:
            self.stdout.write(text)
        else:
            Path(output).write_text(f"{text}\n")

    def _import(self, files: list[str]) -> None:
        documents = {file: _document(file) for file in files}
        made = []
        with transaction.atomic():
            for file, document in documents.items():
                try:
                    made.append(execute(AgentImportAction(document=document, actor="command:agents")))
                except NoobleError as error:
                    raise CommandError(f"{file}: {_told(error)}") from error
        for agent in made:
            self.stdout.write(f"{agent.agent_id} {agent.slug}")


def _document(file: str) -> AgentDocument:
    try:
        raw = sys.stdin.buffer.read() if file == STREAM else Path(file).read_bytes()
        content = parse_json(raw)
        if not isinstance(content, dict):
            raise MalformedRequest(details={"reason": "an exported agent is a JSON object"})
        return AgentDocument(**content)
    except OSError as error:
        raise CommandError(str(error)) from error
    except (NoobleError, ValidationError) as error:
        raise CommandError(f"{file}: {_told(named(error))}") from error


def _told(error: NoobleError) -> str:
    return " ".join([str(error), *(f"{field}: {reason}" for field, reason in error.details.items())])
