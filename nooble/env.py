"""Every environment variable of Nooble: read here and nowhere else, typed, once.

`.env.example` documents each of them for operators. A bad value stops the start
with one line per variable that names it.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent
_REDIS = ("REDIS_URL", "ORCHESTRATOR_REDIS_URL")  # one value, two names


class Environment(BaseSettings):
    """The environment as typed values. Field names are the variables' names in lower case."""

    model_config = SettingsConfigDict(extra="ignore", env_ignore_empty=True, populate_by_name=True)

    nooble_env: Literal["dev", "test", "prod"] = "dev"
    nooble_home: Path = ROOT / ".nooble"
    nooble_dev_public: bool = False
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    database_url: str | None = Field(None, pattern=r"^postgres(ql)?://")
    redis_url: str | None = Field(
        None,
        pattern=r"^(rediss?|unix)://",
        validation_alias=AliasChoices(*_REDIS),
    )

    secret_key: SecretStr | None = Field(None, min_length=32)
    encryption_keys: Annotated[list[SecretStr], NoDecode] = []
    service_token: SecretStr | None = Field(None, min_length=16)
    allowed_hosts: Annotated[list[str], NoDecode] = []
    trusted_proxies: Annotated[list[str], NoDecode] = []

    orchestrator_max_websocket_connections: int = Field(1000, ge=1)
    orchestrator_task_timeout_seconds: float = Field(300, gt=0)
    orchestrator_worker_sleep_seconds: float = Field(1.0, gt=0)
    orchestrator_websocket_ping_interval: float = Field(20, gt=0)
    orchestrator_websocket_ping_timeout: float = Field(30, gt=0)
    orchestrator_ws_url: str | None = Field(None, pattern=r"^wss?://")

    openai_api_key: SecretStr | None = None
    openai_base_url: str = Field("https://api.openai.com/v1", pattern=r"^https?://")
    groq_api_key: SecretStr | None = None
    groq_base_url: str = Field("https://api.groq.com/openai/v1", pattern=r"^https?://")
    nooble_outbound_allow: Annotated[list[str], NoDecode] = []

    otel_exporter_otlp_endpoint: str | None = Field(None, pattern=r"^https?://")

    @field_validator(
        "encryption_keys", "allowed_hosts", "trusted_proxies", "nooble_outbound_allow", mode="before"
    )
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("trusted_proxies", "nooble_outbound_allow")
    @classmethod
    def _check_networks(cls, value: list[str]) -> list[str]:
        for part in value:
            ipaddress.ip_network(part)
        return value

    @field_validator("encryption_keys")
    @classmethod
    def _check_keys(cls, value: list[SecretStr]) -> list[SecretStr]:
        for key in value:
            try:
                length = len(base64.urlsafe_b64decode(key.get_secret_value()))
            except ValueError:
                length = 0
            if length != 32:
                raise ValueError("each key is 32 random bytes as URL-safe base64")
        return value

    @field_validator("nooble_home")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The process's environment; a test session never reads `.env`.

    Raises SystemExit with a line per bad variable.
    """
    env_file = None if os.environ.get("NOOBLE_ENV") == "test" else ROOT / ".env"
    try:
        return Environment(_env_file=env_file)
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            name = str(problem["loc"][0]).upper()
            name = " or ".join(_REDIS) if name in _REDIS else name
            print(f"bad environment: {name}: {problem['msg']}", file=sys.stderr)
        raise SystemExit(2) from None
