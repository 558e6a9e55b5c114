"""Look at the queues, and throw one tenant's waiting work away."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import redis
from django.core.management.base import BaseCommand, CommandError

from core import valkey
from core.actions.bus import execute
from core.actions.tasks import TaskCancelAction
from core.broker import figures
from core.broker.scripts import ROOT, Scripts
from core.errors import CannotCancel
from core.ids import SYSTEM_TENANT, is_slug
from core.models import Task
from core.models.task import TaskStatus
from core.queues.names import DOMAINS, QueueFilter
from core.tenancy import tenant_scope


class Command(BaseCommand):
    help = "List what waits and runs; or purge: cancel a tenant's waiting tasks and throw its messages away."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        listed = verbs.add_parser(
            "list", help="totals a domain; a domain's busiest tenants; what waits in a tenant's queues"
        )
        listed.add_argument(
            "name", nargs="?", help="a domain, a queue's name, or what the service documents call a queue"
        )
        listed.add_argument("--limit", type=int, default=50)
        purged = verbs.add_parser("purge", help="what runs goes on; what waits is cancelled")
        purged.add_argument("tenant", type=_tenant_id)
        purged.add_argument("--domain", required=True, action="append", choices=DOMAINS)
        purged.add_argument(
            "--messages-only",
            action="store_true",
            help="leave the tasks queued: for messages of tasks that are gone",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["verb"] == "list":
                self._list(options["name"], options["limit"])
            else:
                for domain in options["domain"]:
                    self._purge(options["tenant"], domain, options["messages_only"])
        except redis.RedisError as error:
            raise CommandError(f"the broker does not answer: {error}") from error

    def _list(self, name: str | None, limit: int) -> None:
        if name is None:
            lines, dead = figures.totals()
            self._row("DOMAIN", "WAITING", "RUNNING", "DELAYED", "TENANTS")
            for line in lines:
                self._row(line.domain, line.waiting, line.running, line.delayed, line.tenants)
            self.stdout.write(f"dead letters: {dead}")
            return
        try:
            asked = QueueFilter.parse(name)
        except ValueError as error:
            raise CommandError(str(error)) from None
        if asked.tenant_id:
            self._list_queues(asked)
        else:
            self._list_tenants(asked.domain, limit)

    def _list_tenants(self, domain: str, limit: int) -> None:
        self._row("TENANT", "WAITING", "RUNNING", "CAP", "WEIGHT", "OLDEST (s)")
        for row in figures.tenants(domain, limit):
            cap = "-" if row.cap is None else row.cap
            self._row(
                row.tenant_id, row.waiting, row.running, cap, f"{row.weight:g}", f"{row.oldest_wait:.1f}"
            )

    def _list_queues(self, asked: QueueFilter) -> None:
        self._row("QUEUE", "WAITING", "OLDEST (s)")
        for line in figures.queues(asked):
            self._row(line.queue, line.waiting, f"{line.oldest_wait:.1f}")

    def _row(self, name: str, *columns: Any) -> None:
        self.stdout.write(f"{name:<40}" + "".join(f"{column:>11}" for column in columns))

    def _purge(self, tenant: str, domain: str, messages_only: bool) -> None:
        # Tasks first: a message of a cancelled task does nothing, a task without its message waits for ever.
        cancelled = 0 if messages_only else _cancel_waiting(tenant, domain)
        client = valkey.client()
        waiting = Scripts(client).purge(args=[ROOT, domain, tenant, ""])
        delayed = 0
        key = f"{ROOT}:{domain}:delayed"
        for member, _due in client.zscan_iter(key, match=f"{tenant}|*", count=1000):
            delayed += int(client.zrem(key, member))
            client.srem(f"{ROOT}:waiting", member.split(b"|")[5])  # its correlation id
        self.stdout.write(
            f"{domain}: {cancelled} tasks cancelled, {waiting} waiting and {delayed} delayed messages gone"
        )


def _tenant_id(text: str) -> str:
    if text != SYSTEM_TENANT and not is_slug(text):
        raise ValueError(text)
    return text


def _cancel_waiting(tenant: str, domain: str) -> int:
    rows = Task.unscoped.filter(
        tenant_id=tenant,
        status__in=(TaskStatus.PENDING, TaskStatus.QUEUED),
        queue__startswith=f"{domain}:",
    )
    count = 0
    with tenant_scope(tenant):
        for task_id in rows.values_list("pk", flat=True).iterator():
            try:
                execute(TaskCancelAction(task_id=task_id, by="command:queues", only_if_queued=True))
            except CannotCancel:
                continue  # a worker was faster
            count += 1
    return count
