"""Limits repeated events in a log: the first few of a kind are written, the others are counted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

MOST = 10
SPAN_S = 60.0
_KIND = ("event", "level", "kind", "error", "logger", "address")
Facts = Mapping[str, Any]


class Counted:
    """Writes at most `MOST` events of a kind in `SPAN_S` seconds. When the span ends, writes how many more there were.

    A kind is an event with its level, `kind`, `error`, `logger` and `address`. For 1,500 jobs that wait, the log has
    ten lines and a number. No event is left out without being counted.
    """

    def __init__(
        self,
        tell: Callable[[Facts], None],
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        start_timer: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        """`tell` gets the counts, each as an event with `not_shown`. It is called without a lock held."""
        self._tell = tell
        self._monotonic_s = monotonic_s
        self._start_timer = start_timer or _start_timer
        self._lock = threading.RLock()  # a signal handler may log while its thread is logging
        self._seen: Counter[tuple[tuple[str, str], ...]] = Counter()
        self._began_s = float("-inf")
        self._is_timed = False

    def admits(self, facts: Facts) -> bool:
        """Whether this event is to be written. If not, it is counted."""
        kind = tuple((name, str(facts[name])) for name in _KIND if facts.get(name) is not None)
        over: list[Facts] = []
        now_s, needs_timer = self._monotonic_s(), False
        with self._lock:
            if now_s - self._began_s >= SPAN_S:
                over, self._began_s = self._take(), now_s
            self._seen[kind] += 1
            is_told = self._seen[kind] <= MOST
            if not is_told and not self._is_timed:
                self._is_timed = needs_timer = True
        for one in over:
            self._tell(one)
        if needs_timer:
            # The timer writes the counts if no later event does.
            self._start_timer(SPAN_S, self._end_span)
        return is_told

    def flush(self) -> None:
        """Writes the counts that are not written yet."""
        with self._lock:
            over = self._take()
        for one in over:
            self._tell(one)

    def _end_span(self) -> None:
        with self._lock:
            self._is_timed = False
            over, self._began_s = self._take(), self._monotonic_s()
        for one in over:
            self._tell(one)

    def _take(self) -> list[Facts]:
        over: list[Facts] = [
            {**dict(kind), "not_shown": count - MOST} for kind, count in self._seen.items() if count > MOST
        ]
        self._seen.clear()
        return over


def _start_timer(delay_s: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, call)
    timer.daemon = True
    # If no thread can be started, the next event or the end of the process writes the counts.
    with contextlib.suppress(RuntimeError):
        timer.start()
