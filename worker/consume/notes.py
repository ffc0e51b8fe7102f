"""The broker's notes of foreign messages that are reserved: what keeps them while a worker has them.

A note lies in a hash in kombu's form, and its lease in a sorted set beside it. A worker renews the leases of the
messages that it has. A message whose lease ran out goes back on its list, whoever had it (docs/adr/0013).
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

    def __init__(
        self, client: redis.Redis, *, key: str = UNACKED_KEY, index_key: str = UNACKED_INDEX_KEY
    ) -> None:
        """`key` names the hash of the notes, `index_key` the sorted set of their leases."""
        self.key = key
        self.index_key = index_key
        self.client = client
        self._put_back = client.register_script(read_script("put_back.lua"))

    def write(self, tag: str, raw: bytes, queue: str) -> None:
        """Notes a message that the take script could not read."""
        with self.client.pipeline() as pipeline:
            pipeline.zadd(self.index_key, {tag: BROKER_CLOCK.now_s()})
            pipeline.hset(self.key, tag, write_note(raw, queue))
            pipeline.execute()

    def drop(self, tag: str | bytes) -> None:
        """Forgets a message that is finished."""
        with self.client.pipeline() as pipeline:
            self.add_drop(tag, pipeline)
            pipeline.execute()

    def add_drop(self, tag: str | bytes, pipeline: Any) -> None:
        """Adds the commands of `drop` to a pipeline."""
        pipeline.zrem(self.index_key, tag)
        pipeline.hdel(self.key, tag)

    def put_back(self, tag: str | bytes, queues: Collection[str], *, is_next: bool) -> None:
        """Puts a message back on its list: the next to be taken, or the last. `queues` are those that are read here.

        The message is not decoded as kombu would decode it: it may be what ended its worker.
        """
        note: Any = self.client.hget(self.key, tag)
        if not note:
            self.drop(tag)
            return
        raw, queue = read_note(note)
        message = mark_redelivered(raw)
        keys = [self.key, self.index_key, find_list(message, queue, queues)]
        self._put_back(keys=keys, args=[tag, note, message, "next" if is_next else "last"])

    def renew(self, tags: Iterable[str]) -> None:
        """Begins the leases of these messages anew, and asks the broker for its time."""
        BROKER_CLOCK.ask(self.client)
        leases = dict.fromkeys(tags, BROKER_CLOCK.now_s())
        if leases:
            self.client.zadd(self.index_key, leases, xx=True)

    def put_back_overdue(self, lease_s: float, queues: Collection[str]) -> int:
        """Puts back each message whose lease ran out, as the next to be taken: how many.

        By the broker's clock. A lease that begins in the future was written by a clock that was ahead: it is over.
        """
        BROKER_CLOCK.ask(self.client)
        now_s = BROKER_CLOCK.now_s()
        count = 0
        for low, high in ((0, now_s - lease_s), (now_s + _SKEW_S, "+inf")):
            tags: Any = self.client.zrangebyscore(self.index_key, low, high)
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
    """The message of a note as it lay in the broker, and the queue it was for, "" where the note does not say.

    Not decoded: what is in it may be the very thing that ended its worker.
    """
    found = _NOTE.fullmatch(note)
    if found is None:
        return note, ""  # of a message that was cut
    try:
        return found.group(1), str(orjson.loads(found.group(3)))
    except orjson.JSONDecodeError:
        return found.group(1), ""


def find_list(message: bytes, queue: str, ours: Collection[str]) -> str:
    """The list to put a message back to that was noted for `queue`, or for one that is not of `ours`.

    kombu asks the exchange that the message names, and gives to nobody what names one that is not there.
    """
    try:
        priority = min(9, max(0, int(orjson.loads(message)["properties"]["priority"])))
    except (ValueError, TypeError, LookupError, ArithmeticError):
        priority = 0
    return list_key(queue if queue in ours else LONE_QUEUE, priority)
