"""Runs and sockets: the operator's providers, deadlines, limits."""

from nooble.env import environment

_env = environment()


def _plain(secret: object) -> str | None:
    return secret.get_secret_value() if secret is not None else None  # type: ignore[attr-defined]


# The operator's providers: {name: (base URL, key or None)}. A key goes to its own address only.
PROVIDERS = {
    "openai": (_env.openai_base_url, _plain(_env.openai_api_key)),
    "groq": (_env.groq_base_url, _plain(_env.groq_api_key)),
    "scripted": (None, None),
}
TASK_TIMEOUT_SECONDS = _env.orchestrator_task_timeout_seconds
WORKER_SLEEP_SECONDS = _env.orchestrator_worker_sleep_seconds
WEBSOCKET_PING_INTERVAL = _env.orchestrator_websocket_ping_interval
WEBSOCKET_PING_TIMEOUT = _env.orchestrator_websocket_ping_timeout
MAX_WEBSOCKET_CONNECTIONS = _env.orchestrator_max_websocket_connections
