"""Who may listen to what: resume tokens, origins."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.core import signing

TOKEN_SECONDS = 24 * 60 * 60
_host = re.compile(r"[a-z0-9._:-]+")  # names, IPv4, IPv6 without its brackets
_signer = signing.Signer(sep="~", salt="nooble.resume")


@dataclass(frozen=True, slots=True)
class Resume:
    """What a resume token opens: the events and messages of one session after `from_seq`."""

    tenant_id: str
    session_id: str
    from_seq: int

    def token(self) -> str:
        """The signed token, good for a day; its characters are `[A-Za-z0-9._~-]`."""
        expiry = int(time.time()) + TOKEN_SECONDS
        return _signer.sign(f"{self.tenant_id}.{self.session_id}.{self.from_seq}.{expiry}")

    @classmethod
    def verify(cls, token: str, tenant_id: str | None, session_id: str) -> Resume | None:
        """The living token of this session, or None; any tenant's when `tenant_id` is None."""
        try:
            tenant, session, from_seq, expiry = _signer.unsign(token).split(".")
        except (signing.BadSignature, ValueError):
            return None
        if session != session_id or tenant_id not in (None, tenant) or int(expiry) < time.time():
            return None
        return cls(tenant, session, int(from_seq))


def origin_is_sound(origin: str) -> bool:
    """Whether a browser's Origin is a plain `scheme://host[:port]`; `null` is not."""
    try:
        parts = urlsplit(origin)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and _host.fullmatch(parts.hostname or "") is not None
        and "@" not in parts.netloc
        and origin == f"{parts.scheme}://{parts.netloc}"
    )
