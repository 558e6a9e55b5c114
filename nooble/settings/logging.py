"""One line per event, to standard error."""

from nooble.env import environment

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "core.logging.LineFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "filters": {"unexpected": {"()": "core.logging.UnexpectedAnswers"}},
    "root": {"handlers": ["stderr"], "level": environment().log_level},
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
    },
}
