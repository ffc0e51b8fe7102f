"""The simulator's counts: of all calls together, over time, of each key, and of each job by `X-Antrean-Job`."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from typing import Any, NamedTuple

from api_client.simulator.series import Series

_KEYS_KEPT = 1_000


class Call(NamedTuple):
    """Whose call it is: the job and the key, both as they were sent, or empty."""

    job: str
    key: bytes


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


class KeyTally:
    """The counts of one key's calls. `refused`: those that got a refusal of any kind."""

    __slots__ = ("calls", "in_flight", "max_in_flight", "paid", "refused", "tokens")

    def __init__(self) -> None:
        self.calls = self.in_flight = self.max_in_flight = self.paid = self.refused = self.tokens = 0

    def as_dict(self) -> dict[str, int]:
        """All counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Tally:
    """Counts of chat calls. A call is received once, and ends once.

    `started`: a completion was begun. `paid`: it was sent. `abandoned`: the client disconnected before. A hang counts
    as a fault at once, and is in flight until the client disconnects. A refused call is in flight while it is refused.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._keys: dict[bytes, KeyTally] = {}
        self.reset()

    def reset(self) -> None:
        """Sets the counts to zero. Calls in flight stay in flight."""
        self.calls = self.started = self.paid = self.abandoned = 0
        self.turned_away = self.tokens = self.completion_tokens = 0
        self.faults: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.max_in_flight = self.in_flight
        self.started_at = time.time()
        self._series = Series(time.monotonic(), self.in_flight)
        self._jobs: dict[str, JobTally] = {}
        in_flight = {key: tally.in_flight for key, tally in self._keys.items() if tally.in_flight}
        self._keys = {}
        for key, count in in_flight.items():
            tally = self._of_key(key)
            tally.in_flight = tally.max_in_flight = count

    def receive(self, call: Call) -> None:
        self.calls += 1
        self.in_flight += 1
        if self.in_flight > self.max_in_flight:
            self.max_in_flight = self.in_flight
        self._series.note(time.monotonic(), self.in_flight, calls=1)
        of_key = self._of_key(call.key)
        of_key.calls += 1
        of_key.in_flight += 1
        if of_key.in_flight > of_key.max_in_flight:
            of_key.max_in_flight = of_key.in_flight
        if call.job:
            self._of(call.job).received += 1

    def count_in_flight(self, key: bytes) -> int:
        """The calls in flight with this key."""
        return self._of_key(key).in_flight

    def start(self, call: Call) -> None:
        self.started += 1
        if call.job:
            self._of(call.job).started += 1

    def pay(self, call: Call, *, prompt_tokens: int, completion_tokens: int) -> None:
        tokens = prompt_tokens + completion_tokens
        self.paid += 1
        self.tokens += tokens
        self.completion_tokens += completion_tokens
        of_key = self._end(call, paid=1, tokens=tokens, completion_tokens=completion_tokens)
        of_key.paid += 1
        of_key.tokens += tokens
        if call.job:
            self._of(call.job).paid += 1

    def fail(self, call: Call, kind: str) -> None:
        self.hang(call, kind)
        self._end(call)

    def turn_away(self, call: Call, kind: str) -> None:
        """A fault of the kind that refuses the call: a limit, a 429, an outage, a 401 for all."""
        self.hang(call, kind)
        self.turned_away += 1
        self._end(call, refused=1).refused += 1

    def hang(self, call: Call, kind: str) -> None:
        self.faults[kind] += 1
        if call.job:
            self._of(call.job).faults += 1

    def end_hang(self, call: Call) -> None:
        self._end(call)

    def refuse(self, call: Call, status: int) -> None:
        """The request itself, or its key, is refused."""
        self.refused[str(status)] += 1
        self._end(call, refused=1).refused += 1
        if call.job:
            self._of(call.job).refused += 1

    def abandon(self, call: Call) -> None:
        self.abandoned += 1
        self._end(call)
        if call.job:
            self._of(call.job).abandoned += 1

    def stats(self) -> dict[str, Any]:
        """All counts since the start or the last reset; `started_at` in Unix seconds."""
        length_s = max(time.time() - self.started_at, 1e-3)
        return {
            "calls": self.calls,
            "started": self.started,
            "paid": self.paid,
            "abandoned": self.abandoned,
            "turned_away": self.turned_away,
            "faults": dict(self.faults),
            "refused": dict(self.refused),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "calls_per_s": round(self.calls / length_s, 2),
            "max_calls_per_s": self._series.max_calls_per_s,
            "tokens": self.tokens,
            "completion_tokens": self.completion_tokens,
            "keys": {name_key(key): tally.as_dict() for key, tally in self._keys.items()},
            "started_at": self.started_at,
        }

    def series(self, *, every: int = 10) -> list[dict[str, Any]]:
        """Counts over time since the start or the last reset: a row for `every` so many tenths of a second."""
        return self._series.rows(time.monotonic(), every=every)

    def calls_by_job(self, *, at_least: int = 0, paid_at_least: int = 0) -> dict[str, dict[str, int]]:
        """The counts of all jobs with at least so many received and paid calls, in the order of their first calls."""
        return {
            job: tally.as_dict()
            for job, tally in self._jobs.items()
            if tally.received >= at_least and tally.paid >= paid_at_least
        }

    def _end(self, call: Call, **counts: int) -> KeyTally:
        """`counts`: those of `Series.note`."""
        self.in_flight -= 1
        self._series.note(time.monotonic(), self.in_flight, **counts)
        of_key = self._of_key(call.key)
        of_key.in_flight -= 1
        return of_key

    def _of(self, job: str) -> JobTally:
        tally = self._jobs.get(job)
        if tally is None:
            tally = self._jobs[job] = JobTally()
        return tally

    def _of_key(self, key: bytes) -> KeyTally:
        tally = self._keys.get(key)
        if tally is None:
            if len(self._keys) >= _KEYS_KEPT:
                idle = next((key for key, one in self._keys.items() if not one.in_flight), None)
                if idle is not None:
                    del self._keys[idle]
            tally = self._keys[key] = KeyTally()
        return tally


def name_key(key: bytes) -> str:
    """What the statistics call a key: 12 hex digits of its SHA-256, as no key is shown; `none` if none was sent."""
    return hashlib.sha256(key).hexdigest()[:12] if key else "none"
