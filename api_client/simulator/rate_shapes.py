"""Limits of a rate that are no sliding window: one that ends at fixed times, and a bucket that fills all the time."""

from __future__ import annotations

import math
from typing import Protocol

from api_client.simulator.rate_window import WINDOW_S, RateWindow

_KEYS_KEPT = 10_000


class Rate(Protocol):
    """What each key used of a limit. Times are monotonic seconds."""

    def admit(
        self, key: bytes, *, limit: int, now: float, amount: int = 1, window_s: float = WINDOW_S
    ) -> float:
        """0.0 if it is admitted; else the seconds (> 0) until the same would be; inf if it never will."""


class FixedWindow:
    """At most `limit` units of one key in each window; all come back at its end, which is the same for all keys."""

    def __init__(self) -> None:
        self._keys: dict[bytes, tuple[int, int]] = {}

    def admit(
        self, key: bytes, *, limit: int, now: float, amount: int = 1, window_s: float = WINDOW_S
    ) -> float:
        used = self._used(key, now, window_s)
        if used + amount > limit:
            return math.inf if amount > limit else self._left_s(now, window_s)
        if len(self._keys) >= _KEYS_KEPT:
            self._keys.clear()
        self._keys[key] = int(now // window_s), used + amount
        return 0.0

    def used(self, key: bytes, *, now: float, window_s: float = WINDOW_S) -> tuple[int, float]:
        """What the key used in this window, and the seconds until its end."""
        return self._used(key, now, window_s), self._left_s(now, window_s)

    def _used(self, key: bytes, now: float, window_s: float) -> int:
        window, used = self._keys.get(key, (0, 0))
        return used if window == int(now // window_s) else 0

    @staticmethod
    def _left_s(now: float, window_s: float) -> float:
        return (int(now // window_s) + 1) * window_s - now


class Bucket:
    """Each key has a bucket of `limit` units, which fills evenly, all of it in a window."""

    def __init__(self) -> None:
        self._keys: dict[bytes, tuple[float, float]] = {}  # when it was looked at, and what was used then

    def admit(
        self, key: bytes, *, limit: int, now: float, amount: int = 1, window_s: float = WINDOW_S
    ) -> float:
        used = self._used(key, limit, now, window_s)
        if used + amount > limit:
            return math.inf if amount > limit else (used + amount - limit) * window_s / limit
        if len(self._keys) >= _KEYS_KEPT:
            self._keys.clear()
        self._keys[key] = now, used + amount
        return 0.0

    def used(self, key: bytes, *, limit: int, now: float, window_s: float = WINDOW_S) -> tuple[int, float]:
        """What is used, in whole units, and the seconds until the bucket is full."""
        used = self._used(key, limit, now, window_s)
        return math.ceil(used), used * window_s / limit

    def _used(self, key: bytes, limit: int, now: float, window_s: float) -> float:
        at, used = self._keys.get(key, (now, 0.0))
        return max(0.0, used - (now - at) * limit / window_s)


class Shapes:
    """What each key used of one limit, by the shape that the limit has."""

    def __init__(self) -> None:
        self._sliding, self._fixed, self._bucket = RateWindow(), FixedWindow(), Bucket()
        self._all: dict[str, Rate] = {
            "sliding": self._sliding,
            "window": self._fixed,
            "bucket": self._bucket,
        }

    def of(self, shape: str) -> Rate:
        return self._all[shape]

    def used(
        self, shape: str, key: bytes, *, limit: int, now: float, window_s: float = WINDOW_S
    ) -> tuple[int, float]:
        """What is used, and the seconds until all of it is back."""
        if shape == "bucket":
            return self._bucket.used(key, limit=limit, now=now, window_s=window_s)
        return (self._fixed if shape == "window" else self._sliding).used(key, now=now, window_s=window_s)
