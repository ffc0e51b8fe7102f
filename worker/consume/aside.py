"""Messages of other apps that share a queue with us are set aside as they are.

A worker pops what lies in a queue, also what is meant for another app. Dropping such a message loses work of the other
app; putting it back makes it go round between the workers for ever. So it goes to a list of its own, which no worker
reads (docs/adr/0023). An operator gives it back: `worker/broker/set_aside.py`.
"""

from __future__ import annotations

from collections import Counter

import redis
import structlog

from worker.broker.hints import ASIDE_PREFIX
from worker.consume.notes import Notes
from worker.consume.taking import Taken

log = structlog.get_logger(__name__)
_MOST_NAMES = 1_000  # that are counted apart


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
