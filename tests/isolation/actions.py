"""How each action is tried in one tenant's scope with another's ids; a line a verb.

Values that begin with `$` are ids that are tried, with `@` the asker's own: names of the World's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.isolation.routes import RUN


@dataclass(frozen=True)
class Try:
    fields: dict[str, Any] = field(default_factory=dict)
    nothing: bool = False  # what is not there is done already: no error, and nothing is written
    own_is_refused: str = ""  # why the tenant's own ids do not succeed here either


@dataclass(frozen=True)
class Nobodys:
    """It names nothing of anybody's, or is the operators'; `why` says which."""

    why: str


MAKES = "it makes something of the scope's tenant and names nothing else"
OPERATORS = "the console's operators use it, across tenants, and nobody else"
INSIDE = "other handlers execute it, with what they have looked up in the scope; no door does"
OWN = "it is about the scope's tenant as a whole"

_agent = {"agent_id": "$agent_id"}
_session = {"session_id": "$session_id"}
_task = {"task_id": "$task_id"}

TRIES: dict[str, Try | Nobodys] = {
    "agent.ask_bulk_update": Try({"changes": {"type": "x"}, "agents": ["$agent_id"]}, nothing=True),
    "agent.ask_validation": Try(_agent),
    "agent.bulk_update": Nobodys("its items are rows of its task, which is the tenant's"),
    "agent.create": Nobodys(MAKES),
    "agent.delete": Try(_agent),
    "agent.duplicate": Try(_agent),
    "agent.execute": Nobodys("its payload is written by handlers that have looked all of it up in the scope"),
    "agent.import": Nobodys(MAKES),
    "agent.publish": Try(_agent),
    "agent.record_validation": Try({**_agent, "version": 1, "problems": []}),
    "agent.restore": Try(_agent),
    "agent.rollback": Try({**_agent, "version": 1}),
    "agent.stop_runs": Try(_agent, nothing=True),
    "agent.suspend": Try({**_agent, "reason": "x"}),
    "agent.unsuspend": Try(_agent),
    "agent.update": Try({**_agent, "name": "New"}),
    "agent.validate": Try(_agent, own_is_refused="it lets the database go while it asks a provider"),
    "api_key.create": Nobodys(MAKES),
    "api_key.revoke": Try({"row_id": "$key_id"}),
    "batch.cancel": Try({"batch_id": "$batch_id"}),
    "batch.create": Try(
        {
            "agent_id": "$agent_id",
            "items": [
                {
                    "place": "items.0",
                    "custom_id": "",
                    "agent": None,
                    "messages": RUN["messages"],
                    "options": None,
                    "user_id": "",
                    "metadata": {},
                }
            ],
        }
    ),
    "batch.feed": Nobodys(OWN),
    "budget.create": Try({"subject": "agent", **_agent, "period": "day", "limit_tokens": 5}),
    "budget.delete": Try({"budget_id": "$budget_id"}),
    "budget.update": Try({"budget_id": "$budget_id", "limit_tokens": 5}),
    "chat.cancel_task": Try(_task),
    "chat.get_status": Try(_task),
    "chat.send_message": Try({**_agent, "message": "Hello"}),
    "conversation.append": Nobodys(INSIDE),
    "conversation.open": Nobodys(INSIDE),
    "end_user_secret.create": Nobodys(MAKES),
    "end_user_secret.revoke": Try({"secret_id": "$secret_id"}),
    "execution.start": Try({**RUN}),
    "execution.tell": Try({"task_id": "$execution_id"}),
    "membership.create": Nobodys("people are the operator's; whom one names, one lets in"),
    "membership.delete": Try({"row_id": "$membership_id"}),
    "membership.update": Try({"row_id": "$membership_id", "role": "viewer"}),
    "notice.relay": Try({"subject": "$subject"}, nothing=True),
    "price.set": Nobodys(OPERATORS),
    "price.withdraw": Nobodys(OPERATORS),
    "provider.check": Try({"name": "$name"}),
    "provider.create": Nobodys(MAKES),
    "provider.delete": Try({"name": "$name"}),
    "provider.update": Try({"name": "$name", "api_key": "x" * 20}),
    "service.tell": Try(
        {
            "event": "task_status_update",
            "service": "agent-execution",
            **_task,
            "timestamp": "2026-01-01T00:00:00Z",
            "data": {"status": "processing", "details": {}},
        }
    ),
    "session.close": Try(_session),
    "session.create": Try(_agent),
    "session.delete": Try(_session),
    "session.delete_of_user": Try({"user_id": "$user_id"}, nothing=True),
    "session.erase": Try({"session_row_id": "$session_row_id"}, nothing=True),
    "session.update": Try({**_session, "title": "x"}),
    "task.cancel": Try(_task),
    "task.retry": Try({"task_id": "$ended_id"}),
    "template.create": Nobodys(MAKES),
    "template.delete": Try({"template_id": "$template_id"}),
    "template.instantiate": Try({"template_id": "$template_id", "name": "Made", "variables": {}}),
    "template.update": Try({"template_id": "$template_id", "name": "New"}),
    "tenant.create": Nobodys(OPERATORS),
    "tenant.stop_runs": Nobodys(OWN),
    "tenant.suspend": Nobodys(OPERATORS),
    "tenant.unsuspend": Nobodys(OPERATORS),
    "tenant.update": Nobodys(OPERATORS),
    "tier.create": Nobodys(OPERATORS),
    "tier.delete": Nobodys(OPERATORS),
    "tier.update": Nobodys(OPERATORS),
    "webhook.create": Nobodys(MAKES),
    "webhook.delete": Try({"webhook_id": "$webhook_id"}),
    "webhook.record_attempt": Try(
        {
            "delivery_id": "$delivery_id",
            "claim": "$claim",
            "started_at": "2026-01-01T00:00:00Z",
            "seconds": 1.0,
            "error": "x",
        },
        nothing=True,
    ),
    "webhook.replay": Try({"delivery_id": "$delivery_id"}),
    "webhook.rotate": Try({"webhook_id": "$webhook_id"}),
    "webhook.update": Try({"webhook_id": "$webhook_id", "description": "x"}),
    "websocket.broadcast": Nobodys("it names sessions of the scope's tenant, by the tenant's own groups"),
    "websocket.send_message": Try({**_session, "task_id": "$ended_id"}, nothing=True),
}
