"""Messages that this process has fetched from the broker and not finished."""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.consume.foreign import MAX_MESSAGE_BYTES


class Reserved:
    """The messages that this process has fetched and not finished, by delivery tag.

    There is one for the process. It survives a broken connection to the broker, because the jobs of these messages go
    on. The thread of Celery's loop adds messages. Any thread removes them.
    """

    def __init__(
        self,
        *,
        limit: int,
        bulk_limit: int,
        refill_at: int,
        give_back: Callable[[str], None],
        on_broker_lost: Callable[[], None],
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        most_now: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`limit` bounds all messages, `bulk_limit` the bulk ones among them, `most_now` all for the time being.

        Bulk messages are fetched when there is room for `refill_at`. `give_back` is called with the job of a hint that
        Celery gives back. `on_broker_lost` is called when hints may have been lost. A message of more than
        `max_message_bytes` is refused before it is read.
        """
        self.limit = limit
        self.bulk_limit = bulk_limit
        self.refill_at = refill_at
        self.give_back = give_back
        self.on_broker_lost = on_broker_lost
        self.max_message_bytes = max_message_bytes
        self._most_now = most_now
        self._lock = threading.Lock()
        self._jobs: dict[
            str, str | None
        ] = {}  # delivery tag to the job of a hint, None for a foreign message
        self._bulk: set[str] = set()

    @property
    def is_any(self) -> bool:
        """Whether a message is reserved."""
        return bool(self._jobs)

    @property
    def room(self) -> int:
        """How many more messages may be fetched."""
        most = self._most_now()
        return max(0, (self.limit if most is None else min(most, self.limit)) - len(self._jobs))

    @property
    def bulk_room(self) -> int:
        """How many more bulk messages may be fetched."""
        return max(0, min(self.room, self.bulk_limit - len(self._bulk)))

    @property
    def is_refill_due(self) -> bool:
        """Whether there is room for enough bulk messages to be worth a fetch."""
        return self.bulk_room >= (self.refill_at if self._most_now() is None else 1)

    @property
    def hinted_jobs(self) -> list[str]:
        """Ids of the jobs whose hints are reserved, oldest first."""
        with self._lock:
            return [job_id for job_id in self._jobs.values() if job_id is not None]

    @property
    def foreign_tags(self) -> list[str]:
        """Delivery tags of the foreign messages that are reserved, oldest first."""
        with self._lock:
            return [tag for tag, job_id in self._jobs.items() if job_id is None]

    def add(self, delivery_tag: str, *, job_id: str | None, is_bulk: bool) -> None:
        """Reserves a message. `job_id` is the job of a hint, None for a foreign message."""
        with self._lock:
            self._jobs[delivery_tag] = job_id
            if is_bulk:
                self._bulk.add(delivery_tag)

    def remove(self, delivery_tag: str) -> str | None:
        """Ends the reservation of a message. Returns the job of a hint, None for a foreign message."""
        with self._lock:
            self._bulk.discard(delivery_tag)
            return self._jobs.pop(delivery_tag, None)
