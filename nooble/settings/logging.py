"""One line per event, to standard error; spans to a collector, where there is one."""

from nooble.env import environment
from nooble.settings.roles import role
from nooble.settings.security import ENCRYPTION_KEYS, SECRET_KEY, SERVICE_TOKEN

_env = environment()
_provider_keys = [key.get_secret_value() for key in (_env.openai_api_key, _env.groq_api_key) if key]

LOGGING_CONFIG = "core.logging.configure"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "core.logging.Formatter",
            "form": "json" if _env.nooble_env == "prod" else "line",
            "secrets": [SECRET_KEY, SERVICE_TOKEN, *ENCRYPTION_KEYS, *_provider_keys],
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "filters": {"unexpected": {"()": "core.logging.UnexpectedAnswers"}},
    "root": {"handlers": ["stderr"], "level": _env.log_level},
    "loggers": {
        "django.request": {"filters": ["unexpected"]},
        "django.security.DisallowedHost": {"level": "CRITICAL"},  # a stranger's mistake
        "celery.beat": {"level": "WARNING"},
        "django.server": {"level": "WARNING"},
        "daphne": {"level": "WARNING"},
        "django.channels.server": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
        "aiohttp": {"level": "WARNING"},
        "axes": {"level": "WARNING"},
    },
}

# Web and workers record spans: core/otel.py.
OTLP_ENDPOINT = _env.otel_exporter_otlp_endpoint if role() in ("web", "worker") else None
OTLP_SERVICE = role()
