"""Bounds of the texts and numbers that an agent has beside its configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from core.rules import WHOLE

Name = Annotated[str, StringConstraints(min_length=1, max_length=120, strip_whitespace=True)]
Kind = Annotated[str, StringConstraints(min_length=1, max_length=64, strip_whitespace=True)]
Description = Annotated[str, StringConstraints(max_length=2_000)]
Note = Annotated[str, StringConstraints(max_length=500, strip_whitespace=True)]
VersionNumber = Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE]
