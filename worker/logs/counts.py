"""What is many in a log is counted: the first few events of a kind are told as they come, the others as a number."""

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
    """Tells `MOST` events of a kind in `SPAN_S` seconds; how many more there were it says when the span is over.

    A kind is an event of one level, `kind` and `error`. 1,500 jobs that wait are ten lines and a number, however
    they are spread; nothing is left out without being counted.
    """

    def __init__(
        self,
        tell: Callable[[Facts], None],
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        start_timer: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        """`tell` gets the counts, each an event with `not_shown`. Called without a lock held."""
        self._tell = tell
        self._monotonic_s = monotonic_s
        self._start_timer = start_timer or _start_timer
        self._lock = threading.RLock()  # a signal's handler may log while its thread does
        self._seen: Counter[tuple[tuple[str, str], ...]] = Counter()
        self._began_s = float("-inf")
        self._is_timed = False

    def admits(self, facts: Facts) -> bool:
        """Whether this one is told; otherwise it is counted."""
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
            # Somebody has to say it when nothing more is logged.
            self._start_timer(SPAN_S, self._end_span)
        return is_told

    def flush(self) -> None:
        """Tells what was counted and not told yet."""
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
    # Where there are no more threads, the next event or the end of the process says it.
    with contextlib.suppress(RuntimeError):
        timer.start()
