"""Keys, hosts, cookies, headers."""

from nooble.embedded import secrets
from nooble.env import environment

_env = environment()

_kept = secrets(_env.nooble_home) if _env.nooble_env == "dev" else {}

if _env.nooble_env == "prod":
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
    "nooble-resume",
]
CORS_EXPOSE_HEADERS = ["retry-after", "x-request-id", "etag"]
CORS_URLS_REGEX = r"^/(api|v1|health)"
