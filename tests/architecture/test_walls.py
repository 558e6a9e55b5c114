"""Who crosses tenants, and says so: each place is named here, with its reason."""

from __future__ import annotations

import ast

from tests.architecture.test_house import ROOT, sources

WORD = "across_tenants"

# Where the word is said, and why no tenant's scope would do.
CROSSES = {
    "agents/management/commands/agents.py": "whether there is such a tenant, before its scope is entered",
    "agents/management/commands/seed_templates.py": "templates that are everybody's",
    "agents/selectors.py": "what is kept for everybody, by ids that cannot be guessed",
    "conversations/rounds.py": "which tenants have something to do; it is done in each one's scope",
    "core/actions/heartbeat.py": "the leases of all runs of this process, by one statement",
    "core/actions/sweeper.py": "what crashes have left, whosever it is",
    "core/admin/roles.py": "the tenants of a person; and operators, who see everything",
    "core/health.py": "the platform's own figures",
    "core/ledger.py": "calls whose runs are over, whosever they are",
    "core/management/commands/seed_prices.py": "prices that are everybody's",
    "core/models/access.py": "a key says whose it is",
    "core/outbox.py": "notices that were left, and old ones",
    "core/postgres/base.py": "migrations",
    "core/prices.py": "what is kept for everybody",
    "core/selectors.py": "what is kept for everybody; and all tenants' weights, for the broker",
    "core/tenancy/scope.py": "it is defined there",
    "nooble/management/commands/seed_demo.py": "it makes a tenant",
    "nooble/management/commands/shell.py": "who holds the keys of the platform sees everything",
    "orchestrator/admission.py": "which tenants are shut or guarded, of all whose sockets are open here",
    "orchestrator/batches/rounds.py": "which tenants have something to do; it is done in each one's scope",
    "orchestrator/idempotency.py": "keys that are too old; an API key's own, whosever agent it asks",
    "orchestrator/selectors.py": "a task's id opens its status and its cancel",
    "orchestrator/views/metrics.py": "the platform's own figures",
    "orchestrator/webhooks/postman.py": "the deliveries that are due, whosever they are",
}


def says_it(source: str) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == WORD
        for node in ast.walk(ast.parse(source))
    )


def test_who_crosses_tenants_is_named_with_a_reason() -> None:
    found = {str(path.relative_to(ROOT)) for path in sources() if says_it(path.read_text())}
    assert found - CROSSES.keys() == set(), "why does no tenant's scope do here? Name it in CROSSES"
    assert CROSSES.keys() - found - {"core/tenancy/scope.py"} == set(), "these do not cross any more"


def test_the_word_is_found_where_it_is_said() -> None:
    assert says_it("with across_tenants():\n    pass\n")
    assert says_it("@across_tenants()\ndef f(): pass\n")
    assert not says_it("def across_tenants(): pass\n")
