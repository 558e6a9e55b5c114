"""End users' tokens: who speaks, as the tenant's own back end says it.

A token is a JWT (RFC 7519), signed by HS256 with one of the tenant's end-user secrets. It needs `sub`, the
end user, and `exp`. `aud` narrows it to agents by their ids, `session_id` to one session; `kid` in its
header may name the secret. Whatever else it says is the tenant's business.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.exceptions import InvalidSubjectError

from core.selectors import signing_changed, signing_secrets
from orchestrator.errors import EndUserTokenRefused

ALGORITHMS = ("HS256",)  # nothing else, whatever a token says of itself
SKEW_SECONDS = 60  # that clocks may differ by
LONGEST = 4_096  # characters

# What the database can keep: no NUL, and no half characters, which JSON can spell.
_user_id = re.compile(r"[^\x00\ud800-\udfff]{1,255}")

_OPTIONS: Any = {"require": ["sub", "exp"], "verify_aud": False}


@dataclass(frozen=True, slots=True)
class EndUser:
    """Whom a token names: one end user of one tenant, as long as it lives."""

    tenant_id: str
    user_id: str
    secret_id: str
    expires_at: int
    agents: frozenset[str] | None  # the only ones that it is for
    session_id: str | None  # the only one that it is for

    @classmethod
    def of(cls, token: str, tenant_id: str) -> EndUser:
        """The end user that a living token of that tenant names. Raises EndUserTokenRefused."""
        known = signing_secrets(tenant_id)
        opened = _opened(token, known)
        if opened is None:
            # Perhaps it was signed with a secret that is younger than what we know.
            signing_changed(tenant_id)
            younger = {name: text for name, text in signing_secrets(tenant_id).items() if name not in known}
            opened = _opened(token, younger)
        if opened is None:
            raise EndUserTokenRefused("signature")
        secret_id, claims = opened
        user_id, audience, session_id = claims["sub"], claims.get("aud"), claims.get("session_id")
        if not _user_id.fullmatch(user_id):
            raise EndUserTokenRefused("sub")
        agents = [audience] if isinstance(audience, str) else audience
        if agents is not None and not _are_texts(agents):
            raise EndUserTokenRefused("aud")
        if session_id is not None and not isinstance(session_id, str):
            raise EndUserTokenRefused("session_id")
        return cls(
            tenant_id=tenant_id,
            user_id=user_id,
            secret_id=secret_id,
            expires_at=int(claims["exp"]),
            agents=frozenset(agents) if agents is not None else None,
            session_id=session_id,
        )

    def check(self) -> None:
        """For one who was verified a while ago. Raises EndUserTokenRefused."""
        if self.secret_id not in signing_secrets(self.tenant_id):
            raise EndUserTokenRefused("signature")
        if time.time() >= self.expires_at + SKEW_SECONDS:
            raise EndUserTokenRefused("exp")


def _opened(token: str, secrets: dict[str, str]) -> tuple[str, dict[str, Any]] | None:
    """The name of the secret that signed the token, and what it claims; None if it is none of these."""
    if len(token) > LONGEST:
        raise EndUserTokenRefused("malformed")
    try:
        named = jwt.get_unverified_header(token).get("kid")
    except (jwt.InvalidTokenError, RecursionError):
        raise EndUserTokenRefused("malformed") from None
    if named is not None:
        secrets = {named: secrets[named]} if named in secrets else {}
    for secret_id, secret in secrets.items():
        try:
            claims = jwt.decode(token, secret, algorithms=ALGORITHMS, leeway=SKEW_SECONDS, options=_OPTIONS)
        except jwt.InvalidSignatureError:
            continue
        except jwt.MissingRequiredClaimError as error:
            raise EndUserTokenRefused(error.claim) from None
        except jwt.InvalidTokenError as error:
            raise EndUserTokenRefused(_REASONS.get(type(error), "malformed")) from None
        return secret_id, claims
    return None


_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "exp",
    jwt.ImmatureSignatureError: "nbf",
    jwt.InvalidIssuedAtError: "iat",
    jwt.InvalidAlgorithmError: "alg",
    InvalidSubjectError: "sub",
}


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
