"""What this process has taken from the broker and not done with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker.broker.hints import hinted_job, is_bulk_queue
from worker.consume.foreign import MAX_MESSAGE_BYTES


class Hand:
    """The bulk messages and the hints that this process has taken and not done with, by delivery tag.

    One for the process, not one for each channel: when the broker's connection breaks, what was taken goes on.
    Filled by the hub, emptied by any thread.
    """

    def __init__(
        self,
        *,
        bulk_limit: int,
        refill_at: int,
        give_back: Callable[[str], None],
        on_broker_lost: Callable[[], None],
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """`refill_at`: bulk is fetched as soon as there is room for so many. `give_back` is told the job of a
        hint that Celery hands back; `on_broker_lost`, that hints may have been lost on their way. A message of more
        than `max_message_bytes` is refused before it is read."""
        self.bulk_limit = bulk_limit
        self.refill_at = refill_at
        self.give_back = give_back
        self.on_broker_lost = on_broker_lost
        self.max_message_bytes = max_message_bytes
        self.reader: Any = None  # the channel that takes what there is room for
        self._bulk: set[str] = set()
        self._hints: dict[str, str] = {}

    @property
    def room(self) -> int:
        """How many more bulk messages may be taken."""
        return self.bulk_limit - len(self._bulk)

    @property
    def hinted_jobs(self) -> list[str]:
        """Ids of the jobs whose hints are in hand."""
        return list(self._hints.values())

    def take(self, message: Any, delivery_tag: str) -> bool:
        """Whether the message is a hint, which needs no bookkeeping beyond this."""
        if is_bulk_queue(message.delivery_info["routing_key"]):
            self._bulk.add(delivery_tag)
        job_id = hinted_job(message)
        if job_id is not None:
            self._hints[delivery_tag] = job_id
        return job_id is not None

    def let_go(self, delivery_tag: str) -> str | None:
        """The job, if that was a hint."""
        self._bulk.discard(delivery_tag)
        return self._hints.pop(delivery_tag, None)
