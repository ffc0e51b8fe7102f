"""The simulator's counts over time."""

from __future__ import annotations

from collections import deque
from typing import Any

BUCKET_S = 0.1
_BUCKETS_KEPT = 36_000  # an hour


class _Bucket:
    __slots__ = ("calls", "completion_tokens", "in_flight_s", "max_in_flight", "paid", "refused", "tokens")

    def __init__(self, in_flight: int) -> None:
        self.calls = self.paid = self.refused = self.tokens = self.completion_tokens = 0
        self.max_in_flight = in_flight
        self.in_flight_s = 0.0


class Series:
    """Counts in steps of a tenth of a second, for the last hour. Times are monotonic seconds."""

    def __init__(self, now: float, in_flight: int) -> None:
        self._began = self._at = now
        self._first = 0  # number of the oldest bucket that is kept
        self._in_flight = in_flight
        self._buckets = deque([_Bucket(in_flight)])
        self._second = self._second_calls = 0
        self.max_calls_per_s = 0  # calls of the busiest second

    def note(
        self,
        now: float,
        in_flight: int,
        *,
        calls: int = 0,
        paid: int = 0,
        refused: int = 0,
        tokens: int = 0,
        completion_tokens: int = 0,
    ) -> None:
        """Notes what has happened now, and how many calls are in flight from now on."""
        bucket = self._reach(now)
        bucket.calls += calls
        if calls:
            self._count_in_second(int(now - self._began), calls)
        bucket.paid += paid
        bucket.refused += refused
        bucket.tokens += tokens
        bucket.completion_tokens += completion_tokens
        self._in_flight = in_flight
        if in_flight > bucket.max_in_flight:
            bucket.max_in_flight = in_flight

    def rows(self, now: float, *, every: int = 10) -> list[dict[str, Any]]:
        """The steps so far, the oldest first, `every` so many tenths of a second one row.

        `at_s`: seconds from the beginning to the row's start. The last row may be of a shorter time.
        """
        self._reach(now)
        buckets = list(self._buckets)
        rows = []
        for start in range(0, len(buckets), every):
            part = buckets[start : start + every]
            begin_s = (self._first + start) * BUCKET_S
            length_s = min(len(part) * BUCKET_S, max(now - self._began - begin_s, 1e-9))
            rows.append(
                {
                    "at_s": round(begin_s, 1),
                    "calls": sum(one.calls for one in part),
                    "paid": sum(one.paid for one in part),
                    "refused": sum(one.refused for one in part),
                    "tokens": sum(one.tokens for one in part),
                    "completion_tokens": sum(one.completion_tokens for one in part),
                    "max_in_flight": max(one.max_in_flight for one in part),
                    "mean_in_flight": round(sum(one.in_flight_s for one in part) / length_s, 2),
                }
            )
        return rows

    def _count_in_second(self, second: int, calls: int) -> None:
        if second != self._second:
            self._second, self._second_calls = second, 0
        self._second_calls += calls
        self.max_calls_per_s = max(self.max_calls_per_s, self._second_calls)

    def _reach(self, now: float) -> _Bucket:
        """The bucket of this moment; those before it get the time that calls were in flight."""
        wanted = int((now - self._began) / BUCKET_S)
        number = self._first + len(self._buckets) - 1
        if wanted - number > _BUCKETS_KEPT:  # a long silence: the gap is not filled
            self._buckets.clear()
            self._first = number = wanted - _BUCKETS_KEPT
            self._buckets.append(_Bucket(self._in_flight))
            self._at = self._began + number * BUCKET_S
        while number < wanted:
            end = self._began + (number + 1) * BUCKET_S
            self._buckets[-1].in_flight_s += self._in_flight * (end - self._at)
            self._at = end
            self._buckets.append(_Bucket(self._in_flight))
            number += 1
            if len(self._buckets) > _BUCKETS_KEPT:
                self._buckets.popleft()
                self._first += 1
        self._buckets[-1].in_flight_s += self._in_flight * (now - self._at)
        self._at = now
        return self._buckets[-1]
