"""What the views of one agent share."""

from __future__ import annotations

import re
import uuid
from typing import Any

from drf_spectacular.utils import OpenApiParameter
from pydantic import BaseModel, ConfigDict
from rest_framework.request import Request
from rest_framework.response import Response

from agents.actions import AgentResource
from agents.errors import AgentNotFound
from core.api.views import KeyView
from core.errors import ValidationFailed
from core.ids import parse_uuid

# A proxy that compresses makes a tag weak: it still names the same state. Quotes are often forgotten.
_tag = re.compile(r'(?:W/)?"([^"]*)"|([\w.*-]+)', re.ASCII)
_TAG = r'((W/)?"[^",]*"|[A-Za-z0-9_.*-]+)'  # the same, for the schema

IF_MATCH = OpenApiParameter(
    "If-Match",
    {"type": "string", "pattern": rf"^{_TAG}( *, *{_TAG})*$"},
    OpenApiParameter.HEADER,
    description="The ETag that the change is based on. One that is not the present one any more is "
    "refused with 409; the details say what has changed since. Without it the last change wins.",
)


class Nothing(BaseModel):
    """A body without fields."""

    model_config = ConfigDict(extra="forbid")


class AgentManagementView(KeyView):
    area = "agents"

    def change(self, request: Request, agent_id: str) -> dict[str, Any]:
        """The fields that every change of an agent has. Raises AgentNotFound, ValidationFailed."""
        return {
            "agent_id": uuid_of(agent_id),
            "actor": self.actor(request),
            "if_match": _if_match(request),
        }

    def no_fields(self, request: Request) -> None:
        """For verbs that need none: raises pydantic's ValidationError when there are some."""
        Nothing(**self.body(request))


def answer(agent: AgentResource, status: int = 200) -> Response:
    """The agent, and its state as an ETag."""
    body = agent.model_dump(mode="json")
    return Response(body, status=status, headers={"ETag": f'"{agent.etag}"'})


def uuid_of(text: str) -> uuid.UUID:
    """Raises AgentNotFound for what is no id at all."""
    found = parse_uuid(text)
    if found is None:
        raise AgentNotFound()
    return found


def _if_match(request: Request) -> tuple[str, ...] | None:
    """The states that `If-Match` names; None without it. Raises ValidationFailed for what names none."""
    text = request.headers.get("if-match")
    if text is None:
        return None
    tags = []
    for part in text.split(","):
        match = _tag.fullmatch(part.strip())
        if match is None:
            raise ValidationFailed(details={"If-Match": "not an ETag of ours"})
        tags.append(match.group(1) if match.group(1) is not None else match.group(2))
    return tuple(tags)
