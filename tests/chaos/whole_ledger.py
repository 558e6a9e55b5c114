"""After all scenarios of a session: the whole ledger against all of the provider's books."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from tests.chaos.ledger import ROWS, UNSETTLED, Row, wrong
from tests.chaos.rig import Rig, until
from tests.chaos.scenario import KEEP_LEFT
from tests.money import SUMS, wrong_sums

OPEN = """
SELECT count(*) FROM core_task WHERE action = 'agent.execute'
AND status NOT IN ('completed', 'failed', 'cancelled')
"""
HELD = "SELECT count(*) FROM core_usagerecord WHERE held"
# What /api/v1/usage must say of the tenant.
TOTALS = """
SELECT count(*), count(*) FILTER (WHERE accuracy = 'exact'), count(*) FILTER (WHERE accuracy = 'estimated'),
    count(*) FILTER (WHERE accuracy = 'unknown'), sum(prompt_tokens), sum(completion_tokens)
FROM core_usagerecord WHERE tenant_id = %s
"""
COLUMNS = ("calls", "exact", "estimated", "unknown", "prompt_tokens", "completion_tokens")


async def check(rig: Rig, report: Callable[[dict[str, Any]], None]) -> None:
    """One row for every call; exact rows to the token; what was cut is counted as such, and never as zero."""
    books = rig.books()
    assert not books or books[0]["id"] == 1, "the provider has forgotten its first calls"
    async with rig.supervised():
        await rig.as_usual()
        await until(lambda: rig.rows(OPEN) == [(0,)], 60)
    rig.shell(KEEP_LEFT)  # what otherwise has its time

    calls: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in rig.books():
        calls[entry["model"]].append(entry)
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for model, *columns in rig.rows(ROWS.format("model") + " WHERE provider <> 'scripted'"):
        rows[model].append(Row(*columns))
    judged = (calls.keys() | rows.keys()) - rig.unjudged
    troubles = [
        f"{model}: {words}" for model in judged for words in wrong(calls[model], rows[model], cut=True)
    ]
    troubles += [f"{task}: not settled" for (task,) in rig.rows(UNSETTLED, list(rig.unjudged))]
    budgets = [budget_id for (budget_id,) in rig.rows("SELECT id FROM core_budget")]
    troubles += wrong_sums(rig.rows(SUMS, budgets))
    accuracies = Counter(row.accuracy for model in judged for row in rows[model])
    made, written = (sum(len(of[model]) for model in judged) for of in (calls, rows))
    report(
        {
            "scenario": "the whole ledger",
            "provider_calls": made,
            "rows": written,
            **accuracies,
            "written_but_never_made": written - made,
            "reported_but_cut": sum(entry["usage_sent"] for model in judged for entry in calls[model])
            - accuracies["exact"],
            "budgets": len(budgets),
            "troubles": len(troubles),
        }
    )
    assert not troubles, "\n".join(troubles[:20])
    assert rig.rows(HELD) == [(0,)]
    assert reported(rig) == rig.rows(TOTALS, rig.tenant_id)[0]


def reported(rig: Rig) -> tuple[int, ...]:
    """The sums of all pages of the tenant's report."""
    sums: Counter[str] = Counter()
    query: dict[str, Any] = {"by": "model", "limit": 100}
    while True:
        answer = rig.http.get(
            f"{rig.base_url}/api/v1/usage",
            params=query,
            headers={"Authorization": f"Bearer {rig.api_key}"},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        for line in page["items"]:
            sums.update({name: line[name] for name in COLUMNS})
        if page["next"] is None:
            return tuple(sums[name] for name in COLUMNS)
        query["cursor"] = page["next"]
