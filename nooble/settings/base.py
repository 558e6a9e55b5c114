"""Applications, middleware, templates, languages, static files."""

from pathlib import Path

from django.utils.translation import gettext_lazy as _

from nooble.env import ROOT, environment

_env = environment()

NOOBLE_ENV = _env.nooble_env
NOOBLE_HOME: Path = _env.nooble_home
BASE_DIR = ROOT
DEBUG = False  # a stack trace is never an answer; dev reads them in the log

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "corsheaders",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "channels",
    "core",
    "knowledge",
    "tools",
    "agents",
    "conversations",
    "execution",
    "workflows",
    "orchestrator",
    "nooble",
]

MIDDLEWARE = [
    "core.api.middleware.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "core.api.limits.RateLimitMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "core.admin.roles.ConsoleScopeMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "core.api.policy.ContentPolicyMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "nooble.urls"
ASGI_APPLICATION = "nooble.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

LANGUAGE_CODE = "en"
LANGUAGES = [("en", _("English")), ("es", _("Spanish"))]
LOCALE_PATHS = [ROOT / "nooble" / "locale"]
USE_I18N = True
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "/static/"
STATIC_ROOT = ROOT / "staticfiles" if NOOBLE_ENV == "prod" else None
WHITENOISE_USE_FINDERS = NOOBLE_ENV != "prod"
WHITENOISE_AUTOREFRESH = NOOBLE_ENV == "dev"  # a file edited while the platform runs is served whole
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if NOOBLE_ENV == "prod"
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
