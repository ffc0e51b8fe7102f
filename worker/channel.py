"""A channel on kombu's Redis transport that keeps some slots for lone jobs (invariant 9).

Bulk messages are only taken while fewer than `bulk_limit` of them are unacknowledged here; the queue of lone
jobs is read all the time. Everything else is kombu's.
"""

from __future__ import annotations

from queue import Empty
from typing import Any, ClassVar

import structlog
from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu.transport import redis

log = structlog.get_logger(__name__)
BULK_QUEUE = "antrean.bulk"
LONE_QUEUE = "celery"  # Celery's default: a foreign producer needs no routing

_SATURATED_POLL_S = 0.1  # how long a read of lone jobs alone lasts before bulk is looked at again


class QoS(redis.QoS):
    """Counts the unacknowledged bulk messages. Appended to by the hub, acknowledged by any thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bulk_tags: set[str] = set()

    @property
    def bulk_in_hand(self) -> int:
        return len(self._bulk_tags)

    def append(self, message: Any, delivery_tag: str) -> None:
        if message.delivery_info["routing_key"] == BULK_QUEUE:
            self._bulk_tags.add(delivery_tag)
        super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        self._bulk_tags.discard(delivery_tag)
        super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self._bulk_tags.discard(delivery_tag)
        super().reject(delivery_tag, requeue=requeue)


class Channel(redis.Channel):
    """kombu's channel with a bound on bulk messages in hand."""

    QoS = QoS
    _active_queues: list[str]
    bulk_limit: ClassVar[int | None] = None  # set once by the worker process; None: no bound

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            # Something that is no message was put on the list: it is gone, and the worker is not.
            log.error("message.unreadable", error=type(exc).__name__)
            raise Empty from None

    def _brpop_start(self, timeout: float | None = None) -> None:
        limit = Channel.bulk_limit
        if limit is None or self.qos.bulk_in_hand < limit or BULK_QUEUE not in self._active_queues:
            super()._brpop_start(timeout)
            return
        lone = [queue for queue in self._active_queues if queue != BULK_QUEUE]
        if not lone:
            return
        whole = self._active_queues
        self._active_queues = lone
        self._queue_cycle.update(lone)
        try:
            super()._brpop_start(_SATURATED_POLL_S)
        finally:
            self._active_queues = whole
            self._queue_cycle.update(self.active_queues)


class Transport(redis.Transport):
    """kombu's Redis transport, speaking through our channel."""

    Channel = Channel


class Connection(KombuConnection):
    """A kombu connection that speaks through our transport, whatever Redis scheme its URL has."""

    def get_transport_cls(self) -> type[Transport]:
        return Transport


class AMQP(amqp.AMQP):
    """Celery's AMQP with our connections."""

    Connection = Connection
    BrokerConnection = Connection
