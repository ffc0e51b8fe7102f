"""Celery's connection to the broker. Events and remote control go through it; messages of tasks do not.

`worker.consume.fetching` fetches the messages. Celery still has a kombu consumer, which only names the queues of a
worker: `inspect active_queues`, `add_consumer` and `cancel_consumer` need it.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

import redis as redis_client
import structlog
from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu import Consumer
from kombu.transport import redis

from worker.consume.foreign import UNREADABLE

log = structlog.get_logger(__name__)

_RECONNECT_AFTER_S, _RECONNECT_STEP_S, _RECONNECT_AFTER_MAX_S = 1.0, 1.0, 3.0


class Channel(redis.Channel):
    """kombu's channel. It drops a broadcast that it cannot read; kombu's would end the worker."""

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)
        except UNREADABLE as exc:
            log.error("message.unreadable", queue="broadcast", error=type(exc).__name__)
            raise Empty from None


class Transport(redis.Transport):
    """kombu's Redis transport, for which an error that the broker answers is a broken connection.

    So a broker that refuses writes ends no worker. `worker.consume.consumer` lets the other errors end it.
    """

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, redis_client.ResponseError)


class Connection(KombuConnection):
    """A kombu connection. It uses our transport for each Redis scheme."""

    def get_transport_cls(self) -> type[Transport]:
        return Transport

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Connects, and tries again every three seconds at least. kombu would wait 30 s after a long outage."""
        kwargs.setdefault("interval_start", _RECONNECT_AFTER_S)
        kwargs.setdefault("interval_step", _RECONNECT_STEP_S)
        kwargs.setdefault("interval_max", _RECONNECT_AFTER_MAX_S)
        return super().ensure_connection(*args, **kwargs)


class NamesQueues(Consumer):
    """kombu's consumer. It names the queues of a worker and takes no message from them."""

    def consume(self, no_ack: bool | None = None) -> None:
        """Does nothing: the worker's Fetcher reads the queues."""


class AMQP(amqp.AMQP):
    """Celery's AMQP with our connections."""

    Connection = Connection
    BrokerConnection = Connection
    Consumer = NamesQueues
