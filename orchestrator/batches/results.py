"""A batch's results as JSONL, written piece by piece."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

from django.http import StreamingHttpResponse

from core.tenancy import tenant_scope
from orchestrator.batches.selectors import batch_results
from orchestrator.models import Batch
from orchestrator.snapshots import in_thread

SLICE = 100  # results in memory at once
CONTENT_TYPE = "application/jsonl"


def results_file(batch: Batch) -> StreamingHttpResponse:
    """The results so far, to keep: one a line, in the order of the items."""
    return StreamingHttpResponse(
        _written(batch.tenant_id, batch.pk),
        content_type=CONTENT_TYPE,
        headers={
            "Content-Disposition": f'attachment; filename="batch-{batch.pk}.jsonl"',
            "Cache-Control": "no-store",
        },
    )


async def _written(tenant_id: str, batch_id: uuid.UUID) -> AsyncIterator[bytes]:
    """Between two pieces no thread and no database connection is held."""
    after = 0

    def piece() -> tuple[bytes, int | None]:
        with tenant_scope(tenant_id):
            results = batch_results(batch_id, after, SLICE)
        lines = b"".join(result.model_dump_json().encode() + b"\n" for result in results)
        return lines, results[-1].position if len(results) == SLICE else None

    while True:
        lines, last = await in_thread(piece)
        yield lines
        if last is None:
            return
        after = last
