"""Counting, naming and giving back the messages of other apps that workers have set aside.

`worker/consume/aside.py` sets them aside, in a list for each list on which they lay (docs/adr/0023).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import redis

from worker.broker.hints import ASIDE_PREFIX, list_keys
from worker.errors import BrokerAway
from worker.text.names import as_name

_AT_ONCE = 100  # messages given back in one step


def count_aside(client: redis.Redis, queues: Iterable[str]) -> dict[str, int]:
    """The number of messages that were set aside, by the key of the list of `queues` on which they lay.

    Raises BrokerAway.
    """
    keys = [key for queue in queues for key in list_keys(queue)]
    try:
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.llen(ASIDE_PREFIX + key)
            return {key: count for key, count in zip(keys, pipeline.execute(), strict=True) if count}
    except redis.RedisError as exc:
        raise BrokerAway(f"the broker does not answer: {type(exc).__name__}") from exc


def name_aside(client: redis.Redis, key: str) -> str | None:
    """The task of the oldest message that was set aside from a list. None if it names none. Raises BrokerAway."""
    try:
        raw: Any = client.lindex(ASIDE_PREFIX + key, -1)
    except redis.RedisError as exc:
        raise BrokerAway(f"the broker does not answer: {type(exc).__name__}") from exc
    try:
        return as_name(orjson.loads(raw)["headers"]["task"])
    except (ValueError, TypeError, LookupError):
        return None


def give_back(client: redis.Redis, key: str, to: str) -> int:
    """Moves the messages that were set aside from the list `key` to the list `to`, and returns their number.

    They keep their order and are taken before what lies there. Each is in one of both lists at any moment. Raises
    BrokerAway; messages that were moved by then stay there.
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
