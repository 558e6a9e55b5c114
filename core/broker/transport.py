"""The fair transport: tenants' queues under kombu's Redis transport.

Publishers send to `agent:tenant-123:execute:normal` as to any queue. Workers consume domains. What is
neither a domain nor a four-part name is stock kombu's.
"""

from __future__ import annotations

import base64
import datetime
import json
import logging
import zlib
from time import monotonic
from typing import Any

import orjson
from django.conf import settings
from kombu.compression import decompress
from kombu.exceptions import OperationalError
from kombu.transport import redis, virtual
from kombu.transport.virtual import Empty
from redis.exceptions import NoScriptError

from core.broker.backlog import heard
from core.broker.keeper import Keeper, keeper
from core.broker.scripts import ROOT
from core.queues.names import DOMAINS, QueueName

logger = logging.getLogger(__name__)

_RANKS = {"high": 0, "normal": 1, "low": 2}
MIXED_TIMEOUT = 0.2  # seconds, where a worker consumes plain queues as well
NO_TIME = 0.001  # 0 would be for ever


def is_domain(queue: str) -> bool:
    return queue in DOMAINS


def parsed(queue: str) -> QueueName | None:
    """The four parts, or None for a queue that is not ours."""
    try:
        return QueueName.parse(queue)
    except ValueError:
        return None


class QoS(redis.QoS):
    """Acks of leases go to the process's keeper, whichever channel the message came by."""

    restore_at_shutdown = False  # a closed connection gives nothing back: the runs still run

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._earlier = self.channel.keeper.running()

    def can_consume(self) -> bool:
        """What a lost connection brought still runs, and keeps its slot: a full worker takes nothing more."""
        if self._earlier:
            self._earlier &= self.channel.keeper.running()
        free = self.can_consume_max_estimate()
        return free is None or free > len(self._earlier)

    def append(self, message: Any, delivery_tag: str) -> None:
        if self.channel.keeper.holds(delivery_tag):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        self._end(delivery_tag, "") or super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self._end(delivery_tag, "head" if requeue else "rejected") or super().reject(delivery_tag, requeue)

    def _end(self, delivery_tag: str, to: str) -> bool:
        if not self.channel.keeper.holds(delivery_tag):
            return False
        self.channel.keeper.settle(delivery_tag, to)
        virtual.QoS.ack(self, delivery_tag)
        return True

    def restore_unacked(self, client: Any = None) -> None:
        for tag in [tag for tag in self._delivered if self.channel.keeper.holds(tag)]:
            del self._delivered[tag]
        super().restore_unacked(client)


class Channel(redis.Channel):
    """Four-part queues by the scripts, domains by the ring, all else by stock kombu."""

    QoS = QoS
    _plain_turn = False
    _waiting_for = ""
    _busy = False  # the last wait brought a message, so there may be more: it is taken without a wait

    @property
    def keeper(self) -> Keeper:
        return keeper(settings.REDIS_URL, settings.CELERY_WORKER_CONCURRENCY + 20)

    # Publishing.

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        name = parsed(queue)
        if name is None:
            if is_domain(queue):
                raise OperationalError(
                    f"{queue} is a domain: publish to {queue}:<tenant>:<action>:<priority>"
                )
            super()._put(queue, message, **kwargs)
            return
        properties = message["properties"]
        backlog = self.keeper.scripts.put(
            args=[
                ROOT,
                name.domain,
                name.tenant_id,
                queue,
                _RANKS[name.priority],
                properties["delivery_tag"],
                (properties.get("correlation_id") or "").replace("|", ""),
                orjson.dumps(message),
                _due_ms(message["headers"].get("eta")),
            ],
            client=self.keeper.publishing,
        )
        if backlog:
            heard(name.domain, name.tenant_id, backlog)

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> Any:
        return [routing_key] if parsed(routing_key) else super()._lookup(exchange, routing_key, default)

    # Consuming.

    def basic_consume(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        if parsed(queue):
            raise ValueError(f"{queue} cannot be consumed: consume its domain, -Q {queue.split(':')[0]}")
        if is_domain(queue):
            self.keeper.start()
        return super().basic_consume(queue, *args, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        domains = [queue for queue in self.active_queues if is_domain(queue)]
        plain = len(self.active_queues) > len(domains)
        if not domains:
            self._waiting_for = "BRPOP"
            super()._brpop_start(timeout)
            return
        if plain:
            # One connection waits for one kind at a time.
            # Who has work does not wait for what has none.
            timeout, self._plain_turn = NO_TIME if self._busy else MIXED_TIMEOUT, not self._plain_turn
            if self._plain_turn:
                self._waiting_for = "BRPOP"
                self._start("BRPOP", [queue for queue in self.active_queues if not is_domain(queue)], timeout)
                return
        # Domains are served in order: whoever was served goes last.
        served = self._waiting_for.rpartition(" ")[2]
        if served in domains:
            split = domains.index(served) + 1
            domains = domains[split:] + domains[:split]
        if self._busy:
            self._waiting_for = f"EVALSHA {domains[-1]}"
            self._start("EVALSHA", self.keeper.take_arguments(domains))
            return
        self._waiting_for = f"BZPOPMIN {domains[0]}"
        rings = [f"{ROOT}:{domain}:ring" for domain in domains]
        self._start("BZPOPMIN", rings, timeout or self.brpop_timeout)

    def _start(self, command: str, arguments: list[Any], *timeout: float) -> None:
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        self.client.connection.send_command(command, *arguments, *timeout)

    def _brpop_read(self, **options: Any) -> Any:
        self._busy = False
        if self._waiting_for == "BRPOP":
            self._busy = super()._brpop_read(**options)
            return self._busy
        leased = self._leased()
        if leased is None:
            raise Empty()
        self._busy = True
        self.connection._deliver(self._payload(leased), _domain(leased[0]))
        return True

    def _leased(self) -> tuple[str, str, bytes] | None:
        """What the wait or the take brought: (queue, delivery tag, message), leased; or None."""
        if not self._waiting_for.startswith("EVALSHA"):
            popped = self._popped()
            return self.keeper.lease(*popped) if popped else None
        try:
            leased = self.keeper.leased(self._reply("EVALSHA"))
        except NoScriptError:
            self.keeper.client.script_load(self.keeper.scripts.take.script)
            return None
        if leased is not None:
            self._waiting_for = f"EVALSHA {_domain(leased[0])}"
        return leased

    def _payload(self, leased: tuple[str, str, bytes]) -> Any:
        """The leased message as Celery wants it; one that is none goes to the dead letters."""
        payload = self._readable(leased[2])
        if payload is None:
            logger.warning("%s: what no worker can read is a dead letter now", leased[0])
            self.keeper.settle(leased[1], "not a message that a worker can read")
            raise Empty()
        return payload

    def _popped(self) -> tuple[str, str, float] | None:
        """The reply to BZPOPMIN: domain, tenant, start time; None when the wait was in vain."""
        reply = self._reply("BZPOPMIN")
        if not reply:
            return None
        domain = reply[0].decode().split(":")[-2]
        self._waiting_for = f"BZPOPMIN {domain}"
        return domain, reply[1].decode(), float(reply[2])

    def _reply(self, command: str) -> Any:
        try:
            return self.client.parse_response(self.client.connection, command)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None

    def put_back(self) -> None:
        """A reply came while nothing may be consumed: what it brought is put back at once."""
        if self._waiting_for.startswith("EVALSHA"):
            leased = self._leased()
            if leased is not None:
                self.keeper.settle(leased[1], "head")
            return
        popped = self._popped()
        if popped is not None:
            self.keeper.wake(popped[0], popped[1])

    @staticmethod
    def _readable(message: bytes) -> Any:
        """The message as Celery wants it, or None."""
        try:
            payload = orjson.loads(message)
            headers, properties = payload["headers"], payload["properties"]
            if (
                payload["content-type"] != "application/json"
                or not isinstance(headers["task"], str)
                or not isinstance(properties["delivery_tag"], str)
                or not isinstance(properties["delivery_info"], dict)
            ):
                return None
            body = base64.b64decode(payload["body"], validate=True)
            if compression := headers.get("compression"):
                body = decompress(body, compression)
            json.loads(body)  # not orjson: NaN and lone surrogates are nothing new to Celery
        except (KeyError, TypeError, ValueError, AttributeError, OSError, zlib.error):
            return None
        return payload

    # Sizes and purges.

    def _size(self, queue: str) -> int:
        client, name = self.keeper.client, parsed(queue)
        if name is not None:
            return int(client.llen(f"{ROOT}:{name.domain}:m:{queue}"))
        if is_domain(queue):
            return int(client.get(f"{ROOT}:{queue}:total") or 0)
        return int(super()._size(queue))

    def _purge(self, queue: str) -> int:
        name = parsed(queue)
        if name is not None:
            return int(self.keeper.scripts.purge(args=[ROOT, name.domain, name.tenant_id, queue]))
        if not is_domain(queue):
            return int(super()._purge(queue))
        client, count = self.keeper.client, 0
        for tenant, _ in client.zscan_iter(f"{ROOT}:{queue}:waiting"):
            count += self.keeper.scripts.purge(args=[ROOT, queue, tenant, ""])
        return count + int(self.keeper.scripts.purge(args=[ROOT, queue, "", ""]))

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        if not is_domain(queue):
            return super()._get(queue)
        popped: Any = self.keeper.client.zpopmin(f"{ROOT}:{queue}:ring")
        if not popped:
            raise Empty()
        self.keeper.start()
        leased = self.keeper.lease(queue, popped[0][0].decode(), popped[0][1])
        if leased is None:
            raise Empty()
        return self._payload(leased)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return bool(parsed(queue) or is_domain(queue) or super()._has_queue(queue, **kwargs))


def _domain(queue: str) -> str:
    return queue.partition(":")[0]


def _due_ms(eta: str | None) -> int:
    if not eta:
        return 0
    when = datetime.datetime.fromisoformat(eta)
    return int(when.replace(tzinfo=when.tzinfo or datetime.UTC).timestamp() * 1000)


class Poller(redis.MultiChannelPoller):
    """Stock kombu leaves a reply unread while it may not consume; ours holds a tenant: it is read."""

    def _update_brpop_polling(self) -> None:
        for channel in self._channels:
            if channel._waiting_for == "BRPOP":
                super()._update_brpop_polling()
                return

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if (
            kind == "BRPOP"
            and channel._in_poll
            and channel._waiting_for != "BRPOP"
            and not channel.qos.can_consume()
        ):
            channel.put_back()
            return None
        return super().on_readable(fileno)


class Transport(redis.Transport):
    """Registered under our own schemes in `core.broker.urls`."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
