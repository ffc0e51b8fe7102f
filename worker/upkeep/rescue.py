"""Who is dead: decided by a sequence number that stands still for a whole lease on one's own monotonic clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from worker.storage.workers import Beat


@dataclass(slots=True)
class _Seen:
    sequence: int
    since_s: float


class LeaseWatch:
    """Compares what it sees of each worker with what it saw before. Pure but for its memory.

    Because it never reads another machine's clock, and forgets everything when the database was away, an
    outage, a suspended machine or a jump of the clock expires nobody.
    """

    def __init__(self, *, own_id: str, lease_s: float) -> None:
        self._own_id = own_id
        self._lease_s = lease_s
        self._seen: dict[str, _Seen] = {}
        self._looked_at_s: float | None = None

    def forget(self) -> None:
        """The database was away: all observations begin anew."""
        self._seen.clear()
        self._looked_at_s = None

    def observe(self, beats: Iterable[Beat], *, now_s: float) -> list[str]:
        """Ids of the workers whose sequence has stood still for a whole lease. Seconds are monotonic."""
        if self._looked_at_s is not None and now_s - self._looked_at_s > self._lease_s:
            self._seen.clear()  # we ourselves were away (suspended): others may have been as well
        self._looked_at_s = now_s
        dead: list[str] = []
        present: set[str] = set()
        for beat in beats:
            if beat.worker_id == self._own_id:
                continue
            present.add(beat.worker_id)
            seen = self._seen.get(beat.worker_id)
            if seen is None or seen.sequence != beat.sequence:
                self._seen[beat.worker_id] = _Seen(beat.sequence, now_s)
            elif now_s - seen.since_s >= max(self._lease_s, beat.lease_ms / 1000):
                dead.append(beat.worker_id)
        for worker_id in self._seen.keys() - present:
            del self._seen[worker_id]
        return dead
