"""How long what a worker holds is its own: the transport's messages and the rows of its tasks alike."""

LEASE_SECONDS = 15
RENEW_SECONDS = 5
