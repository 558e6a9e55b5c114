"""Signatures, held against the standard's public library and its published example."""

from __future__ import annotations

import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from orchestrator.webhooks.signing import headers, new_secret

BODY = '{"type":"agent_created","text":"ñ \\u2028 𝄞"}'.encode()


def test_the_published_example() -> None:
    signed = headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert signed == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_each_of_two_secrets_opens_what_both_signed() -> None:
    new, old = new_secret(), new_secret()
    assert new.startswith("whsec_") and new != old
    signed = headers("some-id", int(time.time()), BODY, [new, old])
    for secret in (new, old):
        assert Webhook(secret).verify(BODY, signed)["type"] == "agent_created"
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, signed)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(BODY + b" ", signed)
