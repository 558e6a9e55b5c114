"""Print what the platform can do."""

from typing import Any

from django.core.management.base import BaseCommand

from core.actions.registry import all_handlers


class Command(BaseCommand):
    help = "List every action: its handler, its queue, its policy."

    def handle(self, *args: Any, **options: Any) -> None:
        rows = [("ACTION", "HANDLER", "QUEUE", "POLICY")]
        for handler in all_handlers():
            queue = handler.action.queue
            rows.append(
                (
                    handler.action.verb,
                    f"{handler.function.__module__}.{handler.function.__name__}",
                    f"{queue[0]}:{{tenant_id}}:{queue[1]}:{handler.action.default_priority.word}"
                    if queue
                    else "-",
                    "worker" if handler.by_worker else "atomic" if handler.atomic else "own transactions",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            self.stdout.write(
                "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            )
