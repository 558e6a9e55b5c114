"""Whether an agent will answer: its newest version against the world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from django.conf import settings
from django.db import connection

from agents.config import BUILT_IN_PROVIDERS, AgentConfig
from agents.selectors import agent_get
from agents.validation import AgentRecordValidationAction, Problem, asked_models, text_problems
from core import aio
from core.actions.bus import enqueue, execute
from core.actions.registry import handles
from core.models import ProviderCredential
from execution.actions import AgentAskValidationAction, AgentValidateAction, AskedValidation
from execution.credentials import provider_maker
from execution.providers.base import (
    Provider,
    ProviderAddressRefused,
    ProviderAuthenticationFailed,
    ProviderError,
    ProviderNotConfigured,
)

Maker = Callable[[], Provider]
Answer = frozenset[str] | ProviderError | None

# What no later try will mend; every other failure may be gone in a minute.
ERRORS: dict[type[ProviderError], str] = {
    ProviderNotConfigured: "provider_not_configured",
    ProviderAuthenticationFailed: "provider_refused",
    ProviderAddressRefused: "provider_address_refused",
}


@handles(AgentAskValidationAction)
def ask(action: AgentAskValidationAction) -> AskedValidation:
    agent = agent_get(action.agent_id)
    task = enqueue(AgentValidateAction(agent_id=agent.pk), agent_id=agent.pk)
    return AskedValidation(task_id=task.pk, agent_id=agent.pk, status=task.status, queue=task.queue)


@handles(AgentValidateAction, atomic=False)
def validate(action: AgentValidateAction) -> None:
    """While providers are asked, no database connection is held. Killed meanwhile, it is done again."""
    agent = agent_get(action.agent_id)
    assert agent.version is not None
    config = AgentConfig(**agent.version.config)
    own = set(ProviderCredential.objects.values_list("name", flat=True))
    asked = asked_models(config)
    makers = {
        provider: provider_maker(agent.tenant_id, provider)
        for _place, provider, _model in asked
        if provider in own or provider in BUILT_IN_PROVIDERS
    }
    connection.close()
    answers = dict(zip(makers, aio.run(_lists(makers.values())), strict=True))
    problems = list(text_problems(config, settings.TASK_TIMEOUT_SECONDS))
    for place, provider, model in asked:
        field = f"config.{place}"
        names = {"provider": provider}
        if provider not in answers:
            problems.append(
                Problem(field=f"{field}provider", code="provider_unknown", level="error", values=names)
            )
            continue
        answer = answers[provider]
        if isinstance(answer, ProviderError):
            code = ERRORS.get(type(answer))
            problems.append(
                Problem(
                    field=f"{field}provider",
                    code=code or "provider_unreachable",
                    level="error" if code else "warning",
                    values=names,
                )
            )
        elif answer is not None and not {model, f"{model}:latest"} & answer:
            problems.append(
                Problem(field=f"{field}model", code="model_unknown", values={**names, "model": model})
            )
    execute(
        AgentRecordValidationAction(agent_id=agent.pk, version=agent.version.number, problems=tuple(problems))
    )


async def _lists(makers: Iterable[Maker]) -> list[Answer]:
    """What each provider says of its models, all asked at once."""
    return await asyncio.gather(*map(_list, makers))


async def _list(make: Maker) -> Answer:
    try:
        return await make().models()
    except ProviderError as error:
        return error
