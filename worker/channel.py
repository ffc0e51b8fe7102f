"""A channel on kombu's Redis transport that takes hints by the dozen, and keeps some slots for lone jobs.

Bulk messages are only taken while there is room in the process's hand; the queue of lone jobs is read all the
time. Hints (see `worker.hints`) are not acknowledged: they are only remembered while in hand. Everything else
is kombu's: a foreign message is acknowledged, restored and redelivered as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty
from typing import Any, ClassVar

import orjson
import redis as redis_client
import structlog
from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu.asynchronous import get_event_loop
from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from worker.hints import BULK_QUEUE, hinted_job, is_written_hint, list_keys

log = structlog.get_logger(__name__)

_SATURATED_POLL_S = 0.1  # how long a read of lone jobs alone lasts before bulk is looked at again
_BULK_KEYS = list_keys(BULK_QUEUE)
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError)
# A broker that is there and takes nothing: full, or a replica since a failover. Celery would end the worker.
REFUSES_WRITES = (redis_client.exceptions.OutOfMemoryError, redis_client.exceptions.ReadOnlyError)
_RECONNECT_AFTER_S, _RECONNECT_STEP_S, _RECONNECT_AFTER_MAX_S = 1.0, 1.0, 3.0


class Hand:
    """The bulk messages and the hints that this process has taken and not done with, by delivery tag.

    One for the process, not one for each channel: when the broker's connection breaks, what was taken goes on.
    Filled by the hub, emptied by any thread.
    """

    def __init__(
        self,
        *,
        bulk_limit: int,
        refill_at: int,
        give_back: Callable[[str], None],
        on_broker_lost: Callable[[], None],
    ) -> None:
        """`refill_at`: bulk is fetched as soon as there is room for so many. `give_back` is told the job of a
        hint that Celery hands back; `on_broker_lost`, that hints may have been lost on their way."""
        self.bulk_limit = bulk_limit
        self.refill_at = refill_at
        self.give_back = give_back
        self.on_broker_lost = on_broker_lost
        self._bulk: set[str] = set()
        self._hints: dict[str, str] = {}

    @property
    def room(self) -> int:
        """How many more bulk messages may be taken."""
        return self.bulk_limit - len(self._bulk)

    @property
    def hinted_jobs(self) -> list[str]:
        """Ids of the jobs whose hints are in hand."""
        return list(self._hints.values())

    def take(self, message: Any, delivery_tag: str) -> bool:
        """Whether the message is a hint, which needs no bookkeeping beyond this."""
        if message.delivery_info["routing_key"] == BULK_QUEUE:
            self._bulk.add(delivery_tag)
        job_id = hinted_job(message)
        if job_id is not None:
            self._hints[delivery_tag] = job_id
        return job_id is not None

    def let_go(self, delivery_tag: str) -> str | None:
        """The job, if that was a hint."""
        self._bulk.discard(delivery_tag)
        return self._hints.pop(delivery_tag, None)


class QoS(redis.QoS):
    """kombu's, for all messages but the hints of a worker process."""

    channel: Channel

    def append(self, message: Any, delivery_tag: str) -> None:
        hand = Channel.hand
        if hand is not None and hand.take(message, delivery_tag):
            return
        try:
            super().append(message, delivery_tag)
        except self.channel.connection_errors as exc:
            if hand is None:
                raise
            # It is off its list already: dropped here, it would be gone. The worker's memory has it, and its row
            # is written with its claim.
            log.warning("message.kept_in_memory", error=type(exc).__name__)
            virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        hand = Channel.hand
        if hand is None or hand.let_go(delivery_tag) is None:
            super().ack(delivery_tag)
        self.channel.fetch_soon()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        hand = Channel.hand
        job_id = None if hand is None else hand.let_go(delivery_tag)
        if hand is None or job_id is None:
            super().reject(delivery_tag, requeue=requeue)
        elif requeue:
            hand.give_back(job_id)
        self.channel.fetch_soon()


class Channel(redis.Channel):
    """kombu's channel with a bound on bulk messages in hand, which it takes many at a time."""

    QoS = QoS
    hand: ClassVar[Hand | None] = None  # set once by the worker process; None: kombu's ways throughout
    takes_many: ClassVar[bool] = True  # LMPOP, from Redis 7 on and in every Valkey
    _active_queues: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lasting_client: redis_client.Redis | None = None
        self._is_fetch_due = False
        super().__init__(*args, **kwargs)

    @contextmanager
    def conn_or_acquire(self, client: redis_client.Redis | None = None) -> Iterator[redis_client.Redis]:
        """kombu's, with one client that lasts: it makes a new one for each acknowledgement."""
        if client is None:
            client = self._lasting_client
            if client is None or client.connection_pool is not self.pool:
                client = self._lasting_client = self._create_client()
        yield client

    def fetch_soon(self) -> None:
        """Has the hub fetch bulk messages if that is worth it by now. From any thread."""
        hand = Channel.hand
        if hand is None or self._is_fetch_due or hand.room < hand.refill_at:
            return
        hub = get_event_loop()
        if hub is not None:
            self._is_fetch_due = True
            hub.call_soon(self._fetch_when_worth_it)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            found = super()._brpop_read(**options)
        except _UNREADABLE as exc:
            _say_unreadable(exc)
            raise Empty from None
        self._fetch_bulk(at_least=1)
        return found

    def _brpop_start(self, timeout: float | None = None) -> None:
        hand = Channel.hand
        if hand is None or BULK_QUEUE not in self._active_queues or hand.room >= hand.refill_at:
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

    def _fetch_when_worth_it(self) -> None:
        self._is_fetch_due = False
        if Channel.hand is not None:
            self._fetch_bulk(at_least=Channel.hand.refill_at)

    def _fetch_bulk(self, *, at_least: int) -> None:
        """Takes as many bulk messages as there is room for, without waiting for any."""
        hand = Channel.hand
        if hand is None or self.closed or BULK_QUEUE not in self._active_queues:
            return
        room = hand.room
        if room < at_least or not self.qos.can_consume():
            return
        for raw in self._pop_bulk(room):
            try:
                message = orjson.loads(raw) if is_written_hint(raw) else loads(bytes_to_str(raw))
                self.connection._deliver(message, BULK_QUEUE)
            except _UNREADABLE as exc:
                _say_unreadable(exc)

    def _pop_bulk(self, count: int) -> Sequence[bytes]:
        with self.conn_or_acquire() as client:
            if Channel.takes_many:
                try:
                    found: Any = client.lmpop(len(_BULK_KEYS), *_BULK_KEYS, direction="RIGHT", count=count)
                except redis_client.ResponseError:
                    Channel.takes_many = False  # Redis 6.2
                else:
                    return found[1] if found else ()
            for key in _BULK_KEYS:
                items: Any = client.rpop(key, count)
                if items:
                    return items  # type: ignore[no-any-return]
            return ()


def _say_unreadable(exc: Exception) -> None:
    # Something that is no message was put on the list: it is gone, and the worker is not.
    log.error("message.unreadable", error=type(exc).__name__)


class Transport(redis.Transport):
    """kombu's Redis transport, speaking through our channel."""

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, *REFUSES_WRITES)


class Connection(KombuConnection):
    """A kombu connection that speaks through our transport, whatever Redis scheme its URL has."""

    def get_transport_cls(self) -> type[Transport]:
        return Transport

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        """kombu's, which after a long outage looks only twice a minute whether the broker is back."""
        kwargs.setdefault("interval_start", _RECONNECT_AFTER_S)
        kwargs.setdefault("interval_step", _RECONNECT_STEP_S)
        kwargs.setdefault("interval_max", _RECONNECT_AFTER_MAX_S)
        return super().ensure_connection(*args, **kwargs)


class AMQP(amqp.AMQP):
    """Celery's AMQP with our connections."""

    Connection = Connection
    BrokerConnection = Connection
