"""End users' tokens: what opens, and everything that does not."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from core import selectors
from core.actions.bus import execute
from core.actions.end_users import EndUserSecretCreateAction, EndUserSecretRevokeAction
from core.errors import Conflict, NotFound
from core.models import AuditEntry, EndUserSecret, Tenant
from core.tenancy import tenant_scope
from orchestrator.end_users import LONGEST, SKEW_SECONDS, EndUser
from orchestrator.errors import EndUserTokenRefused
from tests.api import Api
from tests.factories import make_secret, make_tenant, sign


def refused(token: str, tenant: Tenant) -> str:
    """Why the token opens nothing."""
    with pytest.raises(EndUserTokenRefused) as told:
        EndUser.of(token, tenant.pk)
    reason: str = told.value.details["end_user_token"]
    return reason


@pytest.fixture
def secret(tenant: Tenant) -> str:
    return make_secret(tenant)


def test_a_token_says_who_speaks(tenant: Tenant, secret: str) -> None:
    agent_id = str(uuid.uuid4())
    user = EndUser.of(sign(secret, "ada@example.com", aud=agent_id, session_id="s-1", name="Ada"), tenant.pk)
    assert (user.tenant_id, user.user_id, user.session_id) == (tenant.pk, "ada@example.com", "s-1")
    assert user.agents == {agent_id}
    user = EndUser.of(sign(secret, "ada", aud=["a", "b"]), tenant.pk)
    assert (user.agents, user.session_id) == ({"a", "b"}, None)
    assert EndUser.of(sign(secret, "ada"), tenant.pk).agents is None


def test_several_secrets_live_at_once_and_a_token_may_name_its_own(tenant: Tenant, secret: str) -> None:
    assert EndUser.of(sign(secret, "ada"), tenant.pk)
    other = make_secret(tenant)  # younger than what is cached
    for text in (secret, other):
        kid = text.split("_")[1]
        assert EndUser.of(sign(text, "ada"), tenant.pk).secret_id == kid
        assert EndUser.of(sign(text, "ada", headers={"kid": kid}), tenant.pk).user_id == "ada"
    assert refused(sign(secret, "ada", headers={"kid": other.split("_")[1]}), tenant) == "signature"
    assert refused(sign(secret, "ada", headers={"kid": "nobody"}), tenant) == "signature"


def test_a_token_of_another_tenant_opens_nothing(tenant: Tenant, secret: str) -> None:
    stranger = make_tenant()
    theirs = make_secret(stranger)
    assert refused(sign(theirs, "ada"), tenant) == "signature"
    assert refused(sign(theirs, "ada", headers={"kid": theirs.split("_")[1]}), tenant) == "signature"
    assert EndUser.of(sign(theirs, "ada"), stranger.pk).tenant_id == stranger.pk


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": None}, "exp"),
        ({"exp": 0}, "exp"),
        ({"exp": "soon"}, "malformed"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": 5}, "sub"),
        ({"sub": "x" * 256}, "sub"),
        ({"sub": "a\0b"}, "sub"),
        ({"sub": "\ud800"}, "sub"),
        ({"aud": 5}, "aud"),
        ({"aud": [5]}, "aud"),
        ({"session_id": 5}, "session_id"),
        ({"nbf": 4_000_000_000}, "nbf"),
        ({"iat": 4_000_000_000}, "nbf"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_claims_that_open_nothing(tenant: Tenant, secret: str, claims: dict[str, Any], reason: str) -> None:
    spelled = {"sub": "ada", "exp": int(time.time()) + 60, **claims}
    said = {name: value for name, value in spelled.items() if value is not None}
    # PyJWT signs no such claims; others do.
    token = jwt.PyJWS().encode(json.dumps(said).encode(), secret, algorithm="HS256")
    assert refused(token, tenant) == reason


def test_clocks_may_differ_by_a_minute(tenant: Tenant, secret: str) -> None:
    now = int(time.time())
    assert EndUser.of(sign(secret, "ada", exp=now - SKEW_SECONDS + 30), tenant.pk)
    assert refused(sign(secret, "ada", exp=now - SKEW_SECONDS - 1), tenant) == "exp"
    assert EndUser.of(sign(secret, "ada", nbf=now + SKEW_SECONDS - 30), tenant.pk)
    assert refused(sign(secret, "ada", nbf=now + SKEW_SECONDS + 30), tenant) == "nbf"


def test_one_who_was_verified_is_asked_again(tenant: Tenant, secret: str, monkeypatch: Any) -> None:
    user = EndUser.of(sign(secret, "ada", exp=int(time.time()) + 10), tenant.pk)
    user.check()
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr("orchestrator.end_users.time.time", lambda: now + 10 + SKEW_SECONDS)
        with pytest.raises(EndUserTokenRefused):
            user.check()
    with tenant_scope(tenant.pk):
        execute(EndUserSecretRevokeAction(secret_id=user.secret_id))
    selectors._signing.clear()
    with pytest.raises(EndUserTokenRefused):
        user.check()


def swapped(algorithm: str, secret: str) -> str:
    """A token that is signed by something else than HS256, or says that it is."""
    claims = {"sub": "ada", "exp": int(time.time()) + 60}
    if algorithm == "none":
        return jwt.encode(claims, None, algorithm="none")
    if algorithm == "RS256":
        key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return jwt.encode(claims, pem, algorithm="RS256")
    if algorithm == "relabelled":
        # HS256's signature under another algorithm's name.
        _, body, signature = jwt.encode(claims, secret, algorithm="HS256").split(".")
        return ".".join([_part(b'{"alg":"RS256","typ":"JWT"}'), body, signature])
    if algorithm == "unsigned":
        return jwt.encode(claims, secret, algorithm="HS256").rpartition(".")[0] + "."
    return jwt.encode(claims, secret, algorithm=algorithm)


def _part(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["none", "RS256", "HS384", "HS512", "relabelled", "unsigned"])
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_nothing_but_hs256_is_taken(tenant: Tenant, secret: str, algorithm: str) -> None:
    assert refused(swapped(algorithm, secret), tenant) in ("alg", "signature")


HEADERS = [
    b"",
    b"{}",
    b"[]",
    b"5",
    b"\xff",
    b'{"alg":null}',
    b'{"alg":["HS256"]}',
    b'{"alg":"HS256","kid":[1]}',
    b'{"alg":"HS256","crit":["x"]}',
    b'{"alg":"HS256","crit":["b64"],"b64":false}',
    b'{"a":' + b"[" * 1_400 + b"]" * 1_400 + b"}",
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: repr(header)[:30])
def test_headers_that_are_none(tenant: Tenant, secret: str, header: bytes) -> None:
    assert refused(f"{_part(header)}.{_part(b'{}')}.{_part(b'x')}", tenant) in (
        "malformed",
        "alg",
        "signature",
    )


def test_a_token_that_is_too_long_is_not_looked_at(tenant: Tenant, secret: str) -> None:
    assert refused(sign(secret, "ada", more="x" * LONGEST), tenant) == "malformed"


@given(st.text(max_size=200))
def test_what_is_no_token_opens_nothing(tenant: Tenant, text: str) -> None:
    assert refused(text, tenant)


def test_an_unreadable_secret_signs_nothing_and_breaks_nothing(tenant: Tenant, secret: str) -> None:
    lost = make_secret(tenant)
    EndUserSecret.unscoped.filter(prefix=lost.split("_")[1]).update(encrypted="gAAAA-nothing")
    selectors._signing.clear()
    assert EndUser.of(sign(secret, "ada"), tenant.pk)
    assert refused(sign(lost, "ada"), tenant) == "signature"


def test_secrets_are_read_once_a_second(tenant: Tenant, secret: str) -> None:
    EndUser.of(sign(secret, "ada"), tenant.pk)
    with CaptureQueriesContext(connection) as queries:
        EndUser.of(sign(secret, "grace"), tenant.pk)
    assert not queries.captured_queries


# --- Making and revoking -------------------------------------------------------------------------------


def test_a_secret_is_shown_once_and_kept_encrypted(tenant: Tenant) -> None:
    api = Api(tenant)
    made = api("POST", "/api/v1/end-user-secrets", {"name": "Shop"}, expect=201)
    assert made["secret"].startswith(f"nbs_{made['secret_id']}_")
    [listed] = api("GET", "/api/v1/end-user-secrets")["items"]
    assert listed == {name: value for name, value in made.items() if name != "secret"}
    stored = str(EndUserSecret.unscoped.filter(tenant=tenant).values().get())
    assert made["secret"] not in stored
    assert made["secret"] not in str(list(AuditEntry.unscoped.filter(tenant=tenant).values()))
    assert EndUser.of(sign(made["secret"], "ada"), tenant.pk).user_id == "ada"


def test_a_revoked_secret_signs_nothing(tenant: Tenant) -> None:
    api = Api(tenant)
    made = api("POST", "/api/v1/end-user-secrets", {"name": "Shop"}, expect=201)
    token = sign(made["secret"], "ada")
    assert EndUser.of(token, tenant.pk)
    path = f"/api/v1/end-user-secrets/{made['secret_id']}"
    api("DELETE", path, expect=204)
    [first] = api("GET", "/api/v1/end-user-secrets")["items"]
    api("DELETE", path, expect=204)
    assert api("GET", "/api/v1/end-user-secrets")["items"] == [first]
    assert first["revoked_at"] is not None
    assert not EndUserSecret.unscoped.get(prefix=made["secret_id"]).encrypted
    selectors._signing.clear()
    assert refused(token, tenant) == "signature"


def test_another_tenants_secrets_do_not_exist(tenant: Tenant) -> None:
    theirs = make_secret(make_tenant())
    api = Api(tenant)
    assert api("GET", "/api/v1/end-user-secrets")["items"] == []
    foreign = api("DELETE", f"/api/v1/end-user-secrets/{theirs.split('_')[1]}", expect=404)
    absent = api("DELETE", "/api/v1/end-user-secrets/0123456789ab", expect=404)
    assert foreign["error"] == absent["error"]
    with tenant_scope(tenant.pk), pytest.raises(NotFound):
        execute(EndUserSecretRevokeAction(secret_id=theirs.split("_")[1]))


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "x" * 81}, {"name": "x", "secret": "mine"}])
def test_bodies_that_make_no_secret(tenant: Tenant, body: dict[str, Any]) -> None:
    Api(tenant)("POST", "/api/v1/end-user-secrets", body, expect=422)


def test_it_takes_the_right_to_chat(tenant: Tenant) -> None:
    reader = Api(tenant, ("chat:read", "agents:write"))
    reader("GET", "/api/v1/end-user-secrets")
    reader("POST", "/api/v1/end-user-secrets", {"name": "x"}, expect=403)
    Api(tenant, ("agents:read",))("GET", "/api/v1/end-user-secrets", expect=403)


def test_there_are_never_too_many_to_try(committed_tenant: Tenant) -> None:
    with tenant_scope(committed_tenant.pk):
        for number in range(10):
            last = execute(EndUserSecretCreateAction(name=str(number)))
        with pytest.raises(Conflict):
            execute(EndUserSecretCreateAction(name="one too many"))
        execute(EndUserSecretRevokeAction(secret_id=last.secret_id))
        execute(EndUserSecretCreateAction(name="room again"))
