"""Messages of other apps that share a queue with us: set aside as they are, and given back when an operator asks.

A worker pops what lies in a queue, also what is meant for another app. Dropping such a message loses work of the other
app; putting it back makes it go round between the workers for ever. So it goes to a list of its own, which no worker
reads (docs/adr/0023).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import orjson
import redis
import structlog

from worker.broker.hints import ASIDE_PREFIX, list_keys
from worker.consume.foreign import as_name
from worker.consume.notes import Notes
from worker.consume.taking import Taken
from worker.errors import BrokerAway

log = structlog.get_logger(__name__)
_MOST_NAMES = 1_000  # that are counted apart
_AT_ONCE = 100  # messages given back in one step


class Aside:
    """Sets messages aside for one worker process. The log tells the first, the tenth, the hundredth … of each task."""

    def __init__(self, client: redis.Redis, notes: Notes) -> None:
        self._client = client
        self._notes = notes
        self._counts: Counter[str | None] = Counter()

    def put(self, taken: Taken, task: str | None) -> None:
        """Sets the message aside, and drops its note in the same step. Raises redis.RedisError.

        `task` is for the log.
        """
        if not taken.is_aside:
            with self._client.pipeline() as pipeline:
                pipeline.lpush(ASIDE_PREFIX + taken.key, taken.raw)
                if taken.is_noted:
                    self._notes.add_drop(taken.tag, pipeline)
                pipeline.execute()
        if len(self._counts) >= _MOST_NAMES:
            task = None if task not in self._counts else task
        self._counts[task] += 1
        count = self._counts[task]
        if count == 10 ** (len(str(count)) - 1):
            log.warning("message.set_aside", task=task, queue=taken.queue, count=count)


def count_aside(client: redis.Redis, queues: Iterable[str]) -> dict[str, int]:
    """How many messages of each list of `queues` were set aside, by the list's key. Raises BrokerAway."""
    keys = [key for queue in queues for key in list_keys(queue)]
    try:
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.llen(ASIDE_PREFIX + key)
            return {key: count for key, count in zip(keys, pipeline.execute(), strict=True) if count}
    except redis.RedisError as exc:
        raise BrokerAway(f"the broker does not answer: {type(exc).__name__}") from exc


def name_aside(client: redis.Redis, key: str) -> str | None:
    """The task of the oldest message that was set aside from a list, if it says one. Raises BrokerAway."""
    try:
        raw: Any = client.lindex(ASIDE_PREFIX + key, -1)
    except redis.RedisError as exc:
        raise BrokerAway(f"the broker does not answer: {type(exc).__name__}") from exc
    try:
        return as_name(orjson.loads(raw)["headers"]["task"])
    except (ValueError, TypeError, LookupError):
        return None


def give_back(client: redis.Redis, key: str, to: str) -> int:
    """How many messages went back from beside the list `key` to the list `to`, before what lies there, in their order.

    Each is in one of both lists at any moment. Raises BrokerAway; what has gone back by then stays there.
    """
    moved = 0
    try:
        left = int(client.llen(ASIDE_PREFIX + key))
        while left > 0:
            with client.pipeline(transaction=False) as pipeline:
                for _ in range(min(left, _AT_ONCE)):
                    # The newest first: the oldest is next to be taken in the end.
                    pipeline.lmove(ASIDE_PREFIX + key, to, "LEFT", "RIGHT")
                found = pipeline.execute()
            moved += sum(one is not None for one in found)
            left -= len(found)
    except redis.RedisError as exc:
        raise BrokerAway(f"the broker does not take messages: {type(exc).__name__}") from exc
    return moved
