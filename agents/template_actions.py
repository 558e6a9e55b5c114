"""The verbs of templates, and what a template is made of."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    model_validator,
)

from agents.actions import AgentResource
from agents.config import AgentConfig
from agents.fields import Description, Kind, Name
from agents.variables import NAME_PATTERN, PROMPT_VARIABLES
from core.actions.base import Action, Result, Slug

STRING, TEXT = 500, 24_000  # characters of a value

LONGEST_CATEGORY = 40

Category = Annotated[str, StringConstraints(max_length=LONGEST_CATEGORY, strip_whitespace=True)]
Choice = Annotated[str, StringConstraints(min_length=1, max_length=STRING, strip_whitespace=True)]
Value = StrictBool | StrictInt | StrictFloat | str


class TemplateVariable(BaseModel):
    """Something that whoever makes an agent fills in; without a default it is required.

    `string` is one line, `text` may have several; a `choice` is one of its `choices`. In the agent's
    texts a boolean reads "yes" or "no".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    label: Annotated[str, StringConstraints(max_length=120)] = ""
    type: Literal["string", "text", "number", "boolean", "choice"] = "string"
    choices: Annotated[tuple[Choice, ...], Field(max_length=50)] = ()
    default: Value | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> TemplateVariable:
        if self.name in PROMPT_VARIABLES:
            raise ValueError(f"every run fills {self.name} in by itself")
        if (self.type == "choice") != bool(self.choices):
            raise ValueError("a choice has choices, and nothing else has")
        if self.default is not None:
            self.text_of(self.default)
        return self

    def text_of(self, value: Value) -> str:
        """The value as the agent's texts will have it. Raises ValueError."""
        if self.type == "boolean":
            if not isinstance(value, bool):
                raise ValueError("true or false")
            return "yes" if value else "no"
        if self.type == "number":
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e15:
                raise ValueError("a number")
            return f"{value:.15g}"
        if not isinstance(value, str):
            raise ValueError("a text")
        if self.type == "choice" and value not in self.choices:
            raise ValueError(f"one of: {', '.join(self.choices)}")
        if self.type == "string" and "\n" in value:
            raise ValueError("one line")
        bound = TEXT if self.type == "text" else STRING
        if len(value) > bound:
            raise ValueError(f"at most {bound} characters")
        return value


Variables = Annotated[tuple[TemplateVariable, ...], Field(max_length=50)]


class TemplateResource(Result):
    """A template as the API shows it. A `shared` one is everybody's, and only the operator writes it."""

    template_id: uuid.UUID
    shared: bool
    slug: str
    name: str
    category: str
    type: str
    description: str
    version: int
    config: AgentConfig
    variables: tuple[TemplateVariable, ...]
    created_at: datetime.datetime
    updated_at: datetime.datetime


class TemplateCreate(BaseModel):
    """The body of a create. `{{name}}` in texts of `config` stands for the variable of that name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    type: Kind
    config: AgentConfig
    variables: Variables = ()
    category: Category = ""
    description: Description = ""
    slug: Slug | None = None


class TemplateUpdate(BaseModel):
    """The body of a change: what is absent stays. `config` is merged, `variables` are replaced.

    A change of either raises the template's version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name | None = None
    type: Kind | None = None
    config: dict[str, Any] | None = None
    variables: Variables | None = None
    category: Category | None = None
    description: Description | None = None
    slug: Slug | None = None


class TemplateCreateAction(TemplateCreate, Action[TemplateResource]):
    """Make a template: of the current tenant, or with `shared` for all."""

    verb = "template.create"

    shared: bool = False


class TemplateUpdateAction(TemplateUpdate, Action[TemplateResource]):
    """Change one of the current tenant's templates, or with `shared` one of everybody's."""

    verb = "template.update"

    template_id: uuid.UUID
    shared: bool = False


class TemplateDeleteAction(Action[None]):
    """Delete a template; the agents made from it stay as they are."""

    verb = "template.delete"

    template_id: uuid.UUID
    shared: bool = False


class TemplateInstantiate(BaseModel):
    """The body of an instantiation: the new agent's name, the variables' values, and what shall differ.

    `config` is merged over what the template gives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    variables: dict[str, Value] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    type: Kind | None = None
    description: Description | None = None
    slug: Slug | None = None
    draft: StrictBool = False


class TemplateInstantiateAction(TemplateInstantiate, Action[AgentResource]):
    """Make an agent from one of the templates that the current tenant sees."""

    verb = "template.instantiate"

    template_id: uuid.UUID
    actor: str
