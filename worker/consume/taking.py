"""Taking messages off their lists, and noting those that are more than hints, in one step.

kombu pops a message and notes it afterwards. A worker that is killed in between loses the message. Here the server does
both in one script, `take.lua` (docs/adr/0013).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis

from worker.broker.clock import BROKER_CLOCK
from worker.broker.hints import ASIDE_PREFIX, HINT_MARK, TASK, UNACKED_KEY, is_bulk_queue
from worker.consume.foreign import Payload, read_foreign, read_fragments
from worker.consume.notes import UNACKED_INDEX_KEY, read_script

_OURS = r'"task"%s*:%s*"' + TASK.replace(".", "%.") + '"'  # as Lua writes patterns
_TOO_LARGE = "the message is larger than ANTREAN_MAX_MESSAGE_BYTES"


class _Lay(NamedTuple):
    queue: str
    is_noted: bool
    raw: bytes


class Taken(_Lay):
    """One message as it lay in the broker.

    `is_noted`: the broker keeps a note of it under `tag` until it is acknowledged. `key`: the list on which it lay.
    `is_cut`: it was too large, and `raw` holds its beginning and its end only. `is_aside`: it was too large and another
    app's, and the script has set it aside whole.
    """

    key: str = ""
    tag: str = ""
    is_cut: bool = False
    is_aside: bool = False


class Taker:
    """Takes messages for one process."""

    def __init__(self, client: redis.Redis, *, longest: int) -> None:
        """`client` must not repeat a command that failed: what the first one popped would be lost.

        `longest`: bytes of the largest message that is taken whole.
        """
        self._client = client
        self._take = client.register_script(read_script("take.lua"))
        self._longest = longest
        self._tags = uuid.uuid4().hex
        self._takes = 0

    def take(self, lists: Sequence[tuple[str, str]], count: int, *, lone: int, bulk: int) -> list[Taken]:
        """At most `count` messages, from the first of the `lists` (queue, key; at most 255) on.

        At most `lone` come from queues of lone messages and `bulk` from queues of bulk messages.
        Raises redis.RedisError; ReadOnlyError where the server takes no writes.
        """
        if not BROKER_CLOCK.is_known:
            BROKER_CLOCK.ask(self._client)
        self._takes += 1
        found: Any = self._take(
            keys=[UNACKED_KEY, UNACKED_INDEX_KEY, *(key for _, key in lists)],
            args=[
                count,
                lone,
                bulk,
                "".join("b" if is_bulk_queue(queue) else "l" for queue, _ in lists),
                BROKER_CLOCK.now_s(),
                HINT_MARK,
                self._longest,
                f"{self._tags}:{self._takes}",
                _OURS,
                ASIDE_PREFIX,
            ],
        )
        return _read_answer(found, lists)


def _read_answer(found: Sequence[bytes], lists: Sequence[tuple[str, str]]) -> list[Taken]:
    codes = found[0]
    size = len(codes) // 2
    messages, tags = found[1 : size + 1], iter(found[size + 1 :])
    taken = []
    for i, raw in enumerate(messages):
        queue, key = lists[codes[2 * i]]
        one = Taken(queue, codes[2 * i + 1] in (1, 2), raw)
        one.key = key
        one.is_aside = codes[2 * i + 1] == 3
        if one.is_noted:
            one.tag = next(tags).decode("ascii")
            one.is_cut = codes[2 * i + 1] == 2
        taken.append(one)
    return taken


def read_taken(taken: Taken) -> Payload:
    """A message that is no hint, as Celery is to get it. Raises Unusable."""
    tag = taken.tag if taken.is_noted else str(uuid.uuid4())
    if taken.is_cut:
        return read_fragments(taken.raw, _TOO_LARGE, queue=taken.queue, tag=tag)
    payload = read_foreign(taken.raw, queue=taken.queue, tag=tag)
    if not taken.is_noted:
        payload.raw = taken.raw
    return payload
