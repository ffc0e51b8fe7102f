"""The simulator's counts: of all calls together, and of each job's calls, by the header `X-Antrean-Job`."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any


class JobTally:
    """The counts of one job's calls."""

    __slots__ = ("abandoned", "faults", "paid", "received", "refused", "started")

    def __init__(self) -> None:
        self.received = 0
        self.started = 0
        self.paid = 0
        self.faults = 0
        self.refused = 0
        self.abandoned = 0

    def as_dict(self) -> dict[str, int]:
        """All counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Tally:
    """Counts of chat calls. A call is received once, and ends once.

    `started`: a completion was begun. `paid`: it was sent. `abandoned`: the client disconnected before. A hang counts
    as a fault at once, and is in flight until the client disconnects.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Sets the counts to zero. Calls in flight stay in flight."""
        self.calls = self.started = self.paid = self.abandoned = 0
        self.faults: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.max_in_flight = self.in_flight
        self.started_at = time.time()
        self._jobs: dict[str, JobTally] = {}

    def receive(self, job: str) -> None:
        self.calls += 1
        self.in_flight += 1
        if self.in_flight > self.max_in_flight:
            self.max_in_flight = self.in_flight
        if job:
            self._of(job).received += 1

    def start(self, job: str) -> None:
        self.started += 1
        if job:
            self._of(job).started += 1

    def pay(self, job: str) -> None:
        self.paid += 1
        self.in_flight -= 1
        if job:
            self._of(job).paid += 1

    def fail(self, job: str, kind: str) -> None:
        self.hang(job, kind)
        self.in_flight -= 1

    def hang(self, job: str, kind: str) -> None:
        self.faults[kind] += 1
        if job:
            self._of(job).faults += 1

    def end_hang(self) -> None:
        self.in_flight -= 1

    def refuse(self, job: str, status: int) -> None:
        self.refused[str(status)] += 1
        self.in_flight -= 1
        if job:
            self._of(job).refused += 1

    def abandon(self, job: str) -> None:
        self.abandoned += 1
        self.in_flight -= 1
        if job:
            self._of(job).abandoned += 1

    def stats(self) -> dict[str, Any]:
        """All counts since the start or the last reset; `started_at` in Unix seconds."""
        return {
            "calls": self.calls,
            "started": self.started,
            "paid": self.paid,
            "abandoned": self.abandoned,
            "faults": dict(self.faults),
            "refused": dict(self.refused),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "started_at": self.started_at,
        }

    def calls_by_job(self, *, at_least: int = 0, paid_at_least: int = 0) -> dict[str, dict[str, int]]:
        """The counts of all jobs with at least so many received and paid calls, in the order of their first calls."""
        return {
            job: tally.as_dict()
            for job, tally in self._jobs.items()
            if tally.received >= at_least and tally.paid >= paid_at_least
        }

    def _of(self, job: str) -> JobTally:
        tally = self._jobs.get(job)
        if tally is None:
            tally = self._jobs[job] = JobTally()
        return tally
