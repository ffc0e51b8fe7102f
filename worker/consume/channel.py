"""A channel on kombu's Redis transport that takes hints by the dozen, and keeps some slots for lone jobs.

Bulk messages are only taken while there is room in the process's hand; the queue of lone jobs is read all the
time. Hints (see `worker.broker.hints`) are not acknowledged: they are only remembered while in hand. A foreign message
is noted by the broker in the step that takes it, leased while in hand, and acknowledged, restored and redelivered as
ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from time import monotonic
from typing import Any, ClassVar

import redis as redis_client
import structlog
from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu.transport import redis, virtual

from worker.broker.clock import BROKER_CLOCK
from worker.broker.hints import Lists, is_bulk_queue, is_written_hint
from worker.consume.aside import Aside
from worker.consume.doorbell import Doorbell
from worker.consume.foreign import (
    MAX_MESSAGE_BYTES,
    Message,
    OfAnother,
    Unusable,
    mark_redelivered,
    read_hint,
)
from worker.consume.hand import Hand
from worker.consume.taking import Taken, Taker, find_list, read_note, read_taken, write_note

__all__ = ["AMQP", "REFUSES_WRITES", "Channel", "Connection", "Hand", "QoS", "Transport"]
log = structlog.get_logger(__name__)

_aside = Aside()
_ASK_EVERY_S = 1.0  # as often as kombu's BRPOP comes back; kombu ends a connection that does not answer
_UNTOLD_POLL_S = 0.05  # how often to ask a broker that pushes no notices
_RENEWALS_A_LEASE = 6
_SKEW_S = 30.0  # how far the clocks of machines that are kept in step may be apart
_MOST_IN_A_ROW = 16  # lone messages between two turns of the hub
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
# A broker that is there and takes nothing: full, or a replica since a failover. Celery would end the worker.
REFUSES_WRITES = (redis_client.exceptions.OutOfMemoryError, redis_client.exceptions.ReadOnlyError)
_RECONNECT_AFTER_S, _RECONNECT_STEP_S, _RECONNECT_AFTER_MAX_S = 1.0, 1.0, 3.0


class QoS(redis.QoS):
    """kombu's, for all messages but the hints of a worker process."""

    channel: Channel

    def append(self, message: Any, delivery_tag: str) -> None:
        hand = Channel.hand
        if hand is not None and hand.take(message, delivery_tag):
            return
        raw = getattr(message._raw, "raw", None)
        if raw is not None:
            queue = message.delivery_info["routing_key"]
            with self.pipe_or_acquire() as pipe:
                pipe.zadd(self.unacked_index_key, {delivery_tag: BROKER_CLOCK.now_s()})
                pipe.hset(self.unacked_key, delivery_tag, write_note(raw, queue)).execute()
        if self.channel.is_noted or raw is not None:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Has the broker drop its note of a message that was not delivered."""
        self._remove_from_indices(delivery_tag).execute()

    def restore_by_tag(
        self, tag: Any, client: redis_client.Redis | None = None, leftmost: bool = False
    ) -> None:
        """kombu's, but what is put back is not decoded in kombu's way: it may be what ended its worker."""
        if Channel.hand is None:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)
            return

        def put_back(pipe: Any) -> None:
            note = pipe.hget(self.unacked_key, tag)
            pipe.multi()
            self._remove_from_indices(tag, pipe)
            if note:
                raw, queue = read_note(note)
                message = mark_redelivered(raw)
                key = find_list(message, queue, self.channel._active_queues)
                (pipe.lpush if leftmost else pipe.rpush)(key, message)

        with self.channel.conn_or_acquire(client) as client:
            client.transaction(put_back, self.unacked_key)

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """kombu's, by the broker's clock: by one that is ahead, what others hold would be given out again."""
        if Channel.hand is None:
            super().restore_visible(start, num, interval)
            return
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        with self.channel.conn_or_acquire() as client:
            BROKER_CLOCK.ask(client)
            now_s = BROKER_CLOCK.now_s()
            try:
                with redis.Mutex(client, self.unacked_mutex_key, self.unacked_mutex_expire):
                    # A lease that begins in the future was written by a clock that was ahead: it is over.
                    for low, high in ((0, now_s - self.visibility_timeout), (now_s + _SKEW_S, "+inf")):
                        # Without a number redis-py takes no start either.
                        first = None if num is None else start
                        for tag in client.zrangebyscore(self.unacked_index_key, low, high, first, num):
                            self.restore_by_tag(tag, client)
            except redis.MutexHeld:
                return

    def ack(self, delivery_tag: str) -> None:
        hand = Channel.hand
        if hand is None or hand.let_go(delivery_tag) is None:
            super().ack(delivery_tag)
        _fetch_soon(hand)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        hand = Channel.hand
        job_id = None if hand is None else hand.let_go(delivery_tag)
        if hand is None or job_id is None:
            super().reject(delivery_tag, requeue=requeue)
        elif requeue:
            hand.give_back(job_id)
        _fetch_soon(hand)


def _fetch_soon(hand: Hand | None) -> None:
    # Not of this message's own channel: that may be one whose connection broke since.
    if hand is not None and hand.reader is not None:
        hand.reader.fetch_soon(hand)


class Channel(redis.Channel):
    """kombu's channel with a bound on bulk messages in hand, which it takes many at a time.

    A worker process waits at a doorbell, and takes in one step what kombu pops first and notes afterwards. kombu's
    poller calls `_brpop_start` to begin to wait, and `_brpop_read` when something has come.
    """

    QoS = QoS
    Message = Message
    hand: ClassVar[Hand | None] = None  # set once by the worker process; None: kombu's ways throughout
    is_noted = False  # whether the broker keeps the message that is being delivered until it is acknowledged
    _active_queues: list[str]
    _in_poll: Any  # the connection while it waits at the doorbell

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lasting_client: redis_client.Redis | None = None
        self._lasting_taker: Taker | None = None
        self._bell: Doorbell | None = None
        self._is_fetch_due = False
        self._known_queues: tuple[str, ...] = ()
        self._known_lists = Lists([], [], [])
        super().__init__(*args, **kwargs)

    @contextmanager
    def conn_or_acquire(self, client: redis_client.Redis | None = None) -> Iterator[redis_client.Redis]:
        """kombu's, with one client that lasts: it makes a new one for each acknowledgement."""
        if client is None:
            client = self._lasting_client
            if client is None or client.connection_pool is not self.pool:
                client = self._lasting_client = self._create_client()
                self._lasting_taker = None
        yield client

    def fetch_soon(self, hand: Hand) -> None:
        """Has the hub fetch bulk messages if that is worth it by now. From any thread."""
        if self._is_fetch_due or hand.room < hand.refill_at:
            return
        hub = self._hub
        if hub is not None:
            self._is_fetch_due = True
            hub.call_soon(self._fetch_when_worth_it)

    @property
    def _hub(self) -> Any:
        # Not kombu's get_event_loop(), which knows of none once a connection broke and the loop began anew.
        transport = self.connection
        return None if transport is None else transport.hub

    def ask_again(self) -> None:
        """Asks at the doorbell once more, unless an answer is still due: what answers is there."""
        bell, connection = self._bell, self._in_poll
        if bell is None or not connection or not bell.is_at(connection) or bell.is_waiting_for_an_answer:
            return
        self._in_poll = None
        self._flush_brpop_reauth()  # nothing is due on this connection: as good a moment as any
        if bell.is_at(connection):
            self._brpop_start()

    def renew_leases(self) -> None:
        """Says of the foreign messages in hand that somebody has them, as the heart does of the jobs.

        kombu gives out again what nobody has said so of for a lease (its `visibility_timeout`). Hub only.
        """
        tags = [] if self._qos is None else list(self._qos._delivered)
        with self.conn_or_acquire() as client:
            BROKER_CLOCK.ask(client)
            if tags:
                client.zadd(self.unacked_index_key, dict.fromkeys(tags, BROKER_CLOCK.now_s()), xx=True)

    def _brpop_start(self, timeout: float | None = None) -> None:
        hand = Channel.hand
        if hand is None:
            self._bell = None
            super()._brpop_start(timeout)
            return
        keys = [key for _, key in self._wanted_lists(hand)]
        if not keys:
            return
        if self._lists.bulk:
            hand.reader = self
        connection = self.client.connection
        if self._bell is None or not self._bell.is_at(connection):
            self._bell = Doorbell(connection)
        self._in_poll = connection
        self._brpop_sent_at = monotonic()  # for kombu's check of its health
        self._bell.ask(keys)

    def _brpop_read(self, **options: Any) -> Any:
        hand, bell, connection = Channel.hand, self._bell, self._in_poll
        if bell is None:  # it waits in kombu's way
            return super()._brpop_read(**options)
        if self._closing or hand is None or not connection or not bell.is_at(connection):
            self._in_poll = None
            raise Empty
        try:
            has_rung = bell.has_rung()
        except self.connection_errors:
            self._in_poll = None
            connection.disconnect()
            raise
        if not has_rung:
            self._wait_without_notices(bell)
            raise Empty
        self._in_poll = None  # the poller begins anew once there is a slot
        if not self._take(hand):
            raise Empty
        return True

    def _wait_without_notices(self, bell: Doorbell) -> None:
        hub = self._hub
        if hub is not None and not bell.is_told:
            hub.call_later(_UNTOLD_POLL_S, self.ask_again)

    def _wanted_lists(self, hand: Hand) -> list[tuple[str, str]]:
        """Queue and key of what there is room for, those to be emptied first first."""
        return self._lists.every if hand.room >= hand.refill_at else self._lists.lone

    @property
    def _lists(self) -> Lists:
        names = tuple(self._active_queues)
        if names != self._known_queues:
            self._known_lists = Lists.of(name for name in names if name not in self.active_fanout_queues)
            self._known_queues = names
        return self._known_lists

    def _take(self, hand: Hand) -> bool:
        """Takes lone messages one by one while there is a slot for each, and bulk once it is its turn; whether there
        was any."""
        has_taken = False
        for _ in range(_MOST_IN_A_ROW):
            if not self.qos.can_consume():
                break
            taken = self._taker.take(self._wanted_lists(hand), 1)
            if not taken:
                break
            has_taken = True
            self._deliver(taken[0])
            if is_bulk_queue(taken[0].queue):
                self._fetch_bulk(hand, at_least=1)
                break
        return has_taken

    def _fetch_when_worth_it(self) -> None:
        self._is_fetch_due = False
        hand, bell = Channel.hand, self._bell
        if hand is None or self.closed:
            return
        if bell is None or not self._in_poll:
            self._fetch_bulk(hand, at_least=hand.refill_at)
            return
        waits_for_bulk = any(key in bell.keys for _, key in self._lists.bulk[:1])
        if waits_for_bulk and bell.is_told:
            return  # there is none, or it rings
        self._fetch_bulk(hand, at_least=hand.refill_at)
        if not waits_for_bulk and hand.room >= hand.refill_at:
            self._in_poll = None  # it was not worth it to wait for bulk, and now it is
            self._brpop_start()

    def _fetch_bulk(self, hand: Hand, *, at_least: int) -> None:
        """Takes as many bulk messages as there is room for, without waiting for any."""
        if not self._lists.bulk or hand.room < at_least or not self.qos.can_consume():
            return
        for taken in self._taker.take(self._lists.bulk, hand.room):
            self._deliver(taken)

    @property
    def _taker(self) -> Taker:
        with self.conn_or_acquire() as client:
            if self._lasting_taker is None:
                if not BROKER_CLOCK.is_known:
                    BROKER_CLOCK.ask(client)
                self._lasting_taker = Taker(
                    client,
                    notes=self.unacked_key,
                    index=self.unacked_index_key,
                    longest=MAX_MESSAGE_BYTES if Channel.hand is None else Channel.hand.max_message_bytes,
                )
            return self._lasting_taker

    def _receive_one(self, c: Any) -> Any:
        """kombu's, for what is said to all workers: what cannot be read of it must not end this one."""
        try:
            return super()._receive_one(c)
        except _UNREADABLE as exc:
            log.error("message.unreadable", queue="broadcast", error=type(exc).__name__)
            raise Empty from None

    def _deliver(self, taken: Taken) -> None:
        if taken.is_aside:
            return self._set_aside(taken)
        message = read_hint(taken.raw) if not taken.is_noted and is_written_hint(taken.raw) else None
        try:
            if message is None:
                message = read_taken(taken)
            self.is_noted = taken.is_noted
            self.connection._deliver(message, taken.queue)
        except OfAnother as exc:
            self._set_aside(taken, exc.task)
        except Unusable as exc:
            # Something that is no message was put on the list: it is gone, and the worker is not.
            log.error("message.unreadable", why=exc.why, size_bytes=len(taken.raw), queue=taken.queue)
            self._forget(taken)
        except _UNREADABLE as exc:
            log.error("message.unreadable", error=type(exc).__name__, queue=taken.queue)
            self._forget(taken)
        finally:
            self.is_noted = False

    def _set_aside(self, taken: Taken, task: str | None = None) -> None:
        with self.conn_or_acquire() as client:
            _aside.put(client, taken, task, self.qos._remove_from_indices)

    def _forget(self, taken: Taken) -> None:
        if taken.is_noted:
            self.qos.forget(taken.tag)


class Transport(redis.Transport):
    """kombu's Redis transport, speaking through our channel."""

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, *REFUSES_WRITES)
    hub: Any = None  # Celery's event loop, once it has taken this transport in
    _timers: tuple[Any, ...] = ()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        self.hub = loop
        for timer in self._timers:  # of an earlier turn of the loop
            timer.cancel()
        lease_s = connection.client.transport_options.get("visibility_timeout", Channel.visibility_timeout)
        self._timers = (
            loop.call_repeatedly(_ASK_EVERY_S, self._each_channel, Channel.ask_again),
            loop.call_repeatedly(lease_s / _RENEWALS_A_LEASE, self._each_channel, Channel.renew_leases),
        )

    def _each_channel(self, act: Callable[[Any], None]) -> None:
        for channel in self.channels:
            act(channel)


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
