"""The broker's notes of foreign messages that are reserved.

A note is the message in kombu's form, in a hash. Its lease is in a sorted set beside it. A worker renews the leases
of its messages. A message whose lease ran out goes back on its list (docs/adr/0013).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from importlib.resources import files
from typing import Any

import orjson
import redis

from worker.broker.clock import BROKER_CLOCK
from worker.broker.hints import LONE_QUEUE, UNACKED_KEY, list_key
from worker.consume.foreign import mark_redelivered

UNACKED_INDEX_KEY = f"{UNACKED_KEY}_index"
_SKEW_S = 30.0  # how far the clocks of machines that are kept in step may be apart
_NOTE = re.compile(rb'\[(.*),("(?:[^"\\]|\\.)*"),("(?:[^"\\]|\\.)*")\]', re.DOTALL)


class Notes:
    """Notes of foreign messages, by delivery tag. Thread-safe. Every method raises redis.RedisError."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._put_back = client.register_script(read_script("put_back.lua"))

    def write(self, tag: str, raw: bytes, queue: str) -> None:
        """Notes a message that the take script could not read."""
        with self.client.pipeline() as pipeline:
            pipeline.zadd(UNACKED_INDEX_KEY, {tag: BROKER_CLOCK.now_s()})
            pipeline.hset(UNACKED_KEY, tag, write_note(raw, queue))
            pipeline.execute()

    def drop(self, tag: str | bytes) -> None:
        """Forgets a message that is finished."""
        with self.client.pipeline() as pipeline:
            self.add_drop(tag, pipeline)
            pipeline.execute()

    def add_drop(self, tag: str | bytes, pipeline: Any) -> None:
        """Adds the commands of `drop` to a pipeline."""
        pipeline.zrem(UNACKED_INDEX_KEY, tag)
        pipeline.hdel(UNACKED_KEY, tag)

    def put_back(self, tag: str | bytes, queues: Collection[str], *, is_next: bool) -> None:
        """Puts a message back on its list, as the next to be taken or the last. `queues` are those of this worker.

        The message is not decoded as kombu would decode it, because the message may have ended its worker.
        """
        note: Any = self.client.hget(UNACKED_KEY, tag)
        if not note:
            self.drop(tag)
            return
        raw, queue = read_note(note)
        message = mark_redelivered(raw)
        keys = [UNACKED_KEY, UNACKED_INDEX_KEY, find_list(message, queue, queues)]
        self._put_back(keys=keys, args=[tag, note, message, "next" if is_next else "last"])

    def renew(self, tags: Iterable[str]) -> None:
        """Asks the broker for its time, and begins the leases of these messages anew."""
        BROKER_CLOCK.ask(self.client)
        leases = dict.fromkeys(tags, BROKER_CLOCK.now_s())
        if leases:
            self.client.zadd(UNACKED_INDEX_KEY, leases, xx=True)

    def put_back_overdue(self, lease_s: float, queues: Collection[str]) -> int:
        """Puts back each message whose lease ran out, as the next one to be taken, and returns their number.

        The broker's clock counts. A lease that begins in the future was written by a clock that was ahead; it is over.
        """
        BROKER_CLOCK.ask(self.client)
        now_s = BROKER_CLOCK.now_s()
        count = 0
        for low, high in ((0, now_s - lease_s), (now_s + _SKEW_S, "+inf")):
            tags: Any = self.client.zrangebyscore(UNACKED_INDEX_KEY, low, high)
            for tag in tags:
                self.put_back(tag, queues, is_next=True)
                count += 1
        return count


def read_script(name: str) -> str:
    """The Lua script of this package with that file name."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def write_note(raw: bytes, queue: str) -> bytes:
    """The note of a message that the take script has not made itself."""
    return b"[" + raw + b',"",' + orjson.dumps(queue) + b"]"


def read_note(note: bytes) -> tuple[bytes, str]:
    """The message of a note as it lay in the broker, and its queue, which is "" if the note does not name one.

    The message is not decoded, because it may have ended its worker.
    """
    found = _NOTE.fullmatch(note)
    if found is None:
        return note, ""  # of a message that was cut
    try:
        return found.group(1), str(orjson.loads(found.group(3)))
    except orjson.JSONDecodeError:
        return found.group(1), ""


def find_list(message: bytes, queue: str, ours: Collection[str]) -> str:
    """The list for a message that was noted for `queue`: a list of the lone queue if `queue` is none of `ours`.

    kombu would use the exchange that the message names, and lose the message if there is no such exchange.
    """
    try:
        priority = min(9, max(0, int(orjson.loads(message)["properties"]["priority"])))
    except (ValueError, TypeError, LookupError, ArithmeticError):
        priority = 0
    return list_key(queue if queue in ours else LONE_QUEUE, priority)
