"""Keys, hosts, cookies, headers."""

import datetime

from nooble.embedded import secrets
from nooble.env import environment

_env = environment()

_kept = secrets(_env.nooble_home) if _env.nooble_env == "dev" else {}

if _env.nooble_env != "dev":
    for _name in ("secret_key", "encryption_keys"):
        if not getattr(_env, _name):
            raise SystemExit(f"bad environment: {_name.upper()}: required outside dev")

SECRET_KEY = _env.secret_key.get_secret_value() if _env.secret_key else _kept.get("SECRET_KEY", "")
SERVICE_TOKEN = (
    _env.service_token.get_secret_value() if _env.service_token else _kept.get("SERVICE_TOKEN", "")
)
# The first encrypts, all decrypt: core/secrets.py.
ENCRYPTION_KEYS = [key.get_secret_value() for key in _env.encryption_keys] or [
    key for key in _kept.get("ENCRYPTION_KEYS", "").split(",") if key
]
# Networks of the operator's own proxies: core/addresses.py.
TRUSTED_PROXIES = tuple(_env.trusted_proxies)
# Private networks that tenants' addresses may lead to: core/outbound.py.
OUTBOUND_ALLOW = tuple(_env.nooble_outbound_allow)
ALLOWED_HOSTS = _env.allowed_hosts or (
    [] if _env.nooble_env == "prod" else ["localhost", "127.0.0.1", "[::1]", "testserver"]
)
if _env.nooble_env == "dev" and _env.nooble_dev_public:
    ALLOWED_HOSTS = _env.allowed_hosts or ["*"]

PASSWORD_HASHERS = ["django.contrib.auth.hashers.ScryptPasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
if _env.nooble_env == "prod":
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 31_536_000
    # Inside the operator's network services speak plain HTTP to us, and probes do: to send everybody else
    # to TLS is the proxy's business (W008). What else there is in the operator's domain, and whether it
    # may be preloaded, is not ours to promise (W005, W021).
    SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021"]

# The console's door: so many wrong passwords, and that name is shut to that address for a while.
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = datetime.timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_CLIENT_IP_CALLABLE = "core.admin.door.visitor_of"
AXES_LOCKOUT_CALLABLE = "core.admin.door.shut"
AXES_ENABLE_ADMIN = False
AXES_DISABLE_ACCESS_LOG = True
AXES_VERBOSE = False
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "core.admin.roles.Roles",
    "django.contrib.auth.backends.ModelBackend",
]

# What a page may load and do; by the beginning of its path, the first that fits.
_STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self';"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_WITH_STYLES = _STRICT.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
CONTENT_POLICIES = {
    # The console's components (Alpine) read their expressions from attributes.
    "/admin/": _WITH_STYLES.replace("script-src 'self'", "script-src 'self' 'unsafe-eval'"),
    "/api/docs": _WITH_STYLES,
    "/": _STRICT,
}

DATA_UPLOAD_MAX_MEMORY_SIZE = 2_621_440  # the API's own bound is lower: core/api/parsers.py
# Chat is public: any origin may call it; what needs a credential takes it from a header, never a cookie.
CORS_ALLOW_ALL_ORIGINS = True
CORS_ALLOW_HEADERS = [
    "accept",
    "accept-language",
    "authorization",
    "content-type",
    "idempotency-key",
    "if-match",
    "last-event-id",
    "nooble-resume",
    "traceparent",
    "tracestate",  # browsers that send the one may send the other
]
CORS_EXPOSE_HEADERS = [
    "retry-after",
    "ratelimit",
    "ratelimit-policy",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-request-id",
    "etag",
]
CORS_URLS_REGEX = r"^/(api|v1|health)"
