"""Fetching messages for this process. Celery's loop asks the broker and gives the messages to the consumer.

It asks when the broker tells of a change, when a message is finished, and once a second. While there is work, it reads
the broker's notices every 20 ms; without work it is woken by them.

Bulk messages are fetched many at a time, while there is room for them. Lone messages are fetched at any time. A hint
(see `worker.broker.hints`) is not acknowledged; this process remembers it while it is reserved. The broker notes a
foreign message in the step that takes it. This process renews its lease while it is reserved, and drops or puts back
the message in the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import redis
import structlog
from kombu.message import Message as KombuMessage

from schemas.shortage import describe_shortage, find_shortage
from worker.broker.client import broker_address, connect_anew, open_client
from worker.broker.hints import Lists, is_bulk_queue, is_written_hint, read_body
from worker.broker.refusals import Refusals
from worker.consume.aside import Aside
from worker.consume.doorbell import Doorbell
from worker.consume.foreign import UNREADABLE, OfAnother, Unusable, read_hint
from worker.consume.notes import Notes
from worker.consume.reserved import Reserved
from worker.consume.taking import Taken, Taker, read_taken
from worker.settings import Settings

log = structlog.get_logger(__name__)

# How often notices are read while there is work. Where none come, how often the broker is asked.
POLL_S = 0.02
IDLE_POLL_S = 1.0  # how often without work, beside each time that the broker tells of a change
_RENEWALS_A_LEASE = 6
_SHORTAGE_QUIET_S = 10.0
_LONGEST_UNREAD_S = 5.0  # how long the broker keeps notices that a busy worker does not read
_MOST_LONE = 16  # most lone messages that one poll fetches


class Message(KombuMessage):
    """A message whose body is decoded. Its channel is the Fetcher."""

    def __init__(self, payload: dict[str, Any], decoded: Any, fetcher: Fetcher) -> None:
        properties = payload["properties"]
        super().__init__(
            body="",
            channel=fetcher,
            delivery_tag=properties["delivery_tag"],
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info=properties["delivery_info"],
            properties=properties,
            headers=payload["headers"],
        )
        self._decoded_cache = decoded


class Fetcher:
    """Fetches messages from this worker's queues, gives them to the consumer, and finishes them when it is told to."""

    no_ack_consumers = None  # kombu's messages ask their channel for it

    def __init__(
        self, reserved: Reserved, takes: redis.Redis, notes: Notes, *, lease_s: float, beat_s: float
    ) -> None:
        """`takes` is the client that takes messages. It must not repeat a command that failed.

        A foreign message goes back on its list `lease_s` after its last renewal. The Fetcher looks for such messages
        every `beat_s`.
        """
        self.reserved = reserved
        self._lease_s, self._beat_s = lease_s, beat_s
        self._client = takes
        self._notes = notes
        self._taker = Taker(takes, longest=reserved.max_message_bytes)
        self._aside = Aside(takes, notes)
        self._doorbell = Doorbell(takes, self._ring)
        self._is_rung = False
        self._timer: Any = None
        self._is_over = False  # the loop of Celery in which the timers are
        self._shortage_told_s = float("-inf")
        self._takes_refused, self._leases_refused = Refusals("takes"), Refusals("leases")
        self._queues: Callable[[], Iterable[str]] = tuple
        self._on_message: Callable[[Message], Any] = Message.requeue
        self._hub: Any = None
        self._is_poll_due = False
        self._may_have_lone = self._may_have_bulk = True  # as far as the last answer tells
        self._polled_s = 0.0
        self._unread: list[
            Taken
        ] = []  # taken, and not read: the broker broke while they were noted or set aside
        self._names: tuple[str, ...] = ()
        self._lists = Lists([], [])

    def begin(self, queues: Callable[[], Iterable[str]], on_message: Callable[[Message], Any]) -> None:
        """Gives messages to `on_message` from now on. `queues` names the queues, in the order to empty them."""
        self._queues, self._on_message = queues, on_message

    def run_in(self, hub: Any) -> None:
        """Starts the timers in Celery's loop: for polls, leases and abandoned messages. They end with the loop."""
        self._hub = hub
        self._is_over = False
        hub.on_close.add(self._end)
        self._is_poll_due = False
        self._doorbell.hang(hub, self._read_names())
        self._is_rung = True  # what came before
        self._schedule()
        for every_s, act, refused in (
            (self._lease_s / _RENEWALS_A_LEASE, self.renew_leases, self._leases_refused),
            (self._beat_s, self.put_back_overdue, self._leases_refused),
            (min(self._beat_s, _LONGEST_UNREAD_S), self._look_after_doorbell, self._takes_refused),
        ):
            hub.call_repeatedly(every_s, self._run, act, refused)

    def poll(self) -> int:
        """Fetches the messages that there is room for, gives them to the consumer, and returns their number.

        Only the thread of Celery's loop may call it. Raises redis.RedisError.
        """
        self._polled_s = monotonic()
        self._is_rung = False
        if self._unread:
            unread, self._unread = self._unread, []
            self._hand_on(unread)
        reserved, lists = self.reserved, self._read_lists()
        room = reserved.room
        lone = min(room, _MOST_LONE)
        bulk = reserved.bulk_room if reserved.is_refill_due else 0
        wanted = lists.every if bulk else lists.lone
        if not room or not wanted:
            self._may_have_lone = self._may_have_bulk = True
            return 0
        taken = self._taker.take(wanted, room, lone=lone, bulk=bulk)
        self._takes_refused.end()
        bulk_taken = sum(is_bulk_queue(one.queue) for one in taken)
        lone_taken = len(taken) - bulk_taken
        self._may_have_lone = lone_taken >= lone
        self._may_have_bulk = bulk_taken >= bulk
        self._hand_on(taken)
        self._poll_soon()
        return len(taken)

    def renew_leases(self) -> None:
        """Renews the leases of the foreign messages of this process. Raises redis.RedisError."""
        tags = self.reserved.foreign_tags
        self._notes.renew(tags)
        if tags:  # else nothing was written
            self._leases_refused.end()

    def put_back_overdue(self) -> None:
        """Puts back foreign messages of all workers whose leases ran out. Raises redis.RedisError."""
        if self._notes.put_back_overdue(self._lease_s, self._read_names()):
            self._leases_refused.end()

    def put_back_all(self) -> None:
        """Puts back the foreign messages of this process, at its end. Raises redis.RedisError."""
        for tag in self.reserved.foreign_tags:
            self.reserved.remove(tag)
            self._notes.put_back(tag, self._read_names(), is_next=True)

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Finishes a message. From any thread. Raises redis.RedisError.

        Where the broker refuses it for a while, the message comes again after its lease, and its job has ended by then.
        """
        if self.reserved.remove(delivery_tag) is None:
            self._drop(delivery_tag)
        self._poll_soon()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drops a message, or gives it back. From any thread. Raises redis.RedisError.

        Where the broker refuses it for a while, the message comes again after its lease.
        """
        job_id = self.reserved.remove(delivery_tag)
        if job_id is not None:
            if requeue:
                self.reserved.give_back(job_id)
        elif requeue:
            try:
                self._notes.put_back(delivery_tag, self._read_names(), is_next=False)
            except redis.ResponseError as exc:
                self._leases_refused.note(exc)
        else:
            self._drop(delivery_tag)
        self._poll_soon()

    def _drop(self, delivery_tag: str) -> None:
        try:
            self._notes.drop(delivery_tag)
        except redis.ResponseError as exc:
            self._takes_refused.note(exc)

    def _poll_in_turn(self, least_s: float = POLL_S / 2) -> None:
        """Polls if it is time. Not if the last poll is less than `least_s` ago."""
        waited_s = monotonic() - self._polled_s
        if waited_s <= least_s or self._takes_refused.is_pausing:
            return
        if self._is_rung or self._is_blind or waited_s >= IDLE_POLL_S or self._doorbell.has_rung():
            self.poll()

    @property
    def _is_busy(self) -> bool:
        """Whether notices are read every 20 ms, and not waited for."""
        return self.reserved.is_any or self._is_blind

    @property
    def _is_blind(self) -> bool:
        """Whether no notice tells of what is to be fetched: the broker is asked every 20 ms."""
        return bool(self._unread) or not self._doorbell.is_hung

    def _ring(self) -> None:
        """Something changed in the broker. Polls now, or 20 ms after the last poll."""
        self._is_rung = True
        self._run(lambda: self._poll_in_turn(POLL_S), self._takes_refused)
        self._schedule()

    def _schedule(self) -> None:
        """Starts the timer of the next poll: 20 ms if there is work, else a second. Cancels the one before.

        kombu runs ten due timers at most, and may then sleep for a second. Timers without a use would count among them.
        """
        if self._timer is not None:
            self._timer.cancel()
        is_soon = self._is_rung or self._is_busy
        if not is_soon:
            self._doorbell.arm()
        self._timer = self._hub.call_later(POLL_S if is_soon else IDLE_POLL_S, self._when_due)

    def _when_due(self) -> None:
        self._run(self._poll_in_turn, self._takes_refused)
        self._schedule()

    def _look_after_doorbell(self) -> None:
        self._doorbell.look_after(self._read_names())

    def _poll_soon(self) -> None:
        """Has Celery's loop poll at its next turn if there is room and may be a message. From any thread."""
        if self._hub is None or self._is_poll_due or self._takes_refused.is_pausing:
            return
        reserved = self.reserved
        if (self._may_have_bulk and reserved.is_refill_due) or (
            self._may_have_lone and reserved.room >= reserved.refill_at
        ):
            self._is_poll_due = True
            self._hub.call_soon(self._poll_now)

    def _poll_now(self) -> None:
        self._is_poll_due = False
        if not self._is_over:
            self._run(self.poll, self._takes_refused)

    def _run(self, act: Callable[[], Any], refused: Refusals) -> None:
        """Runs `act`. A refusal, or a shortage of this machine, is logged, and the next timer tries again.

        Any other error ends Celery's loop. (kombu's timers would only log it.)
        """
        try:
            try:
                act()
            except redis.ResponseError as exc:
                refused.note(exc)
                for client in (self._client, self._notes.client):
                    connect_anew(client)
        except Exception as exc:
            shortage = find_shortage(exc)
            if shortage is None:
                self._hub.call_soon(self._raise, exc)
            elif monotonic() > self._shortage_told_s + _SHORTAGE_QUIET_S:
                self._shortage_told_s = monotonic()
                log.error("worker.shortage", lack=describe_shortage(shortage))

    def _raise(self, exc: Exception) -> None:
        if not self._is_over:
            raise exc

    def _end(self, _hub: Any) -> None:
        """Called when Celery's loop ends. kombu still runs the calls that wait then; they must not raise any more."""
        self._is_over = True

    def _read_names(self) -> tuple[str, ...]:
        return tuple(self._queues())

    def _read_lists(self) -> Lists:
        names = self._read_names()
        if names != self._names:
            self._lists = Lists.of(names)
            self._names = names
        return self._lists

    def _hand_on(self, taken: Iterable[Taken]) -> None:
        """Gives all messages that can be read to the consumer. The next poll tries the others again.

        Raises redis.RedisError if there are others.
        """
        messages: deque[Message] = deque()
        error: redis.RedisError | None = None
        try:
            for one in taken:
                try:
                    message = self._read(one)
                except redis.RedisError as exc:
                    self._unread.append(one)  # it is on no list any more, nor are those behind it
                    error = error or exc
                    continue
                if message is not None:
                    messages.append(message)
            while messages:
                self._on_message(messages[0])
                messages.popleft()
        except BaseException:
            self._let_go(messages)
            raise
        if error is not None:
            raise error

    def _read(self, taken: Taken) -> Message | None:
        """Reads and reserves a message. None if it is another app's, or no message. Raises redis.RedisError."""
        try:
            if taken.is_aside:
                raise OfAnother
            job_id, message = self._make(taken)
            is_bulk = is_bulk_queue(message.delivery_info["routing_key"])
        except OfAnother as exc:
            self._aside.put(taken, exc.task)
            return None
        except Unusable as exc:
            # What lay on the list is no message. It is dropped, and the worker goes on.
            log.error("message.unreadable", why=exc.why, size_bytes=len(taken.raw), queue=taken.queue)
            self._forget(taken)
            return None
        except UNREADABLE as exc:
            log.error("message.unreadable", error=type(exc).__name__, queue=taken.queue)
            self._forget(taken)
            return None
        self.reserved.add(message.delivery_tag, job_id=job_id, is_bulk=is_bulk)
        return message

    def _make(self, taken: Taken) -> tuple[str | None, Message]:
        """The job of a hint, None for a foreign message; and the message. Raises Unusable and redis.RedisError."""
        if not taken.is_noted and is_written_hint(taken.raw):
            hint = read_hint(taken.raw)
            if hint is not None:
                job_id = hint["headers"]["id"]
                return job_id, Message(hint, read_body(job_id), self)
        payload = read_taken(taken)
        message = Message(payload, payload.decoded, self)
        if payload.raw is not None:
            self._notes.write(message.delivery_tag, payload.raw, taken.queue)
        return None, message

    def _forget(self, taken: Taken) -> None:
        if taken.is_noted:
            self._notes.drop(taken.tag)

    def _let_go(self, messages: Iterable[Message]) -> None:
        """Gives back messages that did not reach the consumer. If one cannot be put back, its lease runs out."""
        for message in messages:
            if message.acknowledged:
                continue
            try:
                message.requeue()
            except redis.RedisError as exc:
                log.warning("message.not_put_back", error=type(exc).__name__)


def build_fetcher(settings: Settings, reserved: Reserved) -> Fetcher:
    """The fetcher of a worker process. Connects lazily. Raises AntreanError for an address that cannot be used."""
    address = broker_address(settings)
    return Fetcher(
        reserved,
        open_client(address, tries_again=False),
        Notes(open_client(address)),
        lease_s=settings.lease_s,
        beat_s=settings.beat_interval_s,
    )
