"""What a check has found is kept with the agent."""

from __future__ import annotations

from django.utils import timezone

from agents.events import notify_validated
from agents.handlers.rows import locked
from agents.models import Agent
from agents.validation import AgentRecordValidationAction, kept, validation_of
from core.actions.registry import handles


@handles(AgentRecordValidationAction)
def record_validation(action: AgentRecordValidationAction) -> None:
    """A version that is not the newest any more is nobody's concern: its check is forgotten."""
    agent = locked(action.agent_id)
    assert agent.version is not None
    if action.version != agent.version.number:
        return
    agent.validation = kept(action.version, action.problems, timezone.now())
    # Not `save`: a check is no change of the agent, so `updated_at` and the ETag stay.
    Agent.objects.filter(pk=agent.pk).update(validation=agent.validation)
    validation = validation_of(agent)
    assert validation is not None
    findings = [finding.model_dump(mode="json") for finding in validation.findings]
    notify_validated(
        agent,
        valid=validation.status != "invalid",
        errors=[finding for finding in findings if finding["level"] == "error"],
        warnings=[finding for finding in findings if finding["level"] == "warning"],
    )
