"""Messages of other apps that share a queue with us are set aside as they are.

A worker takes each message of its queues, also one of another app. If it dropped the message, the other app would lose
work. If it put the message back, the workers would take it again and again. So the message goes to a list of its own,
which no worker reads (docs/adr/0023). An operator gives it back with `worker/broker/set_aside.py`.
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
    """Sets messages aside for one worker process. The log shows the first, tenth, hundredth … message of each task."""

    def __init__(self, client: redis.Redis, notes: Notes) -> None:
        self._client = client
        self._notes = notes
        self._counts: Counter[str | None] = Counter()

    def put(self, taken: Taken, task: str | None) -> None:
        """Sets the message aside and drops its note in one step. `task` is for the log. Raises redis.RedisError."""
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
