"""What a worker reports of the limits that answers tell: what was told, and which calls it may not have counted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from schemas.rates import Allowance, RateHints
from worker.policy.told_windows import Refill, Window, note_refill, note_window, pass_reset
from worker.throttle.gatekeeper import Permit

_APART_S = 0.25  # of two calls that began so far apart, the endpoint counted the first one first
_MIXED_S = 60.0
_SILENT_S = 120.0  # after so long without such headers, nothing is reported any more
_LONGEST_S = 3600.0
_LONG_MS = 20_000
_ENOUGH = 1_000_000_000  # more calls than anyone begins


@dataclass(frozen=True, slots=True)
class ToldReport:
    """What a worker tells the store. `place`: the key and the model whose limits they are.

    `begun`: calls since the last report. `held`: permits of before, and calls that have a slot and have not begun.
    `in_flight`, and `uncounted` of them that a limit of requests may not have counted. The windows' times are in ms
    from now, where there is anything new.
    """

    place: str
    begun: int = 0
    held: int = 0
    in_flight: int = 0
    uncounted: int = 0
    requests: Window | None = None
    tokens: Window | None = None


class ToldMarks:
    """One per meter. Thread-safe. Where no answer tells a limit, a call costs two short locks."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._begun = self._ended = self._reported = 0
        self._begun_at: deque[tuple[float, int]] = deque()  # the latest calls, by their start
        self._counted = 0  # calls that began well before one that was answered
        self._place: str | None = None
        self._is_active = False
        self._heard_s = self._mixed_until_s = float("-inf")
        self._windows: dict[str, Window] = {}  # by requests and tokens, in their units; times are monotonic
        self._unreported: set[str] = set()
        self._refills: dict[str, Refill | None] = {}

    @property
    def is_active(self) -> bool:
        """Whether an answer told a limit lately."""
        return self._is_active

    def begin(self, permit: Permit) -> None:
        """The call begins now."""
        permit.began_s = now_s = self._monotonic_s()
        with self._lock:
            self._begun += 1
            if self._is_active:
                permit.mark = _until(self._begun_at, now_s - _APART_S)
                self._begun_at.append((now_s, self._begun))

    def end(self) -> None:
        """The call has ended, and what its answer told is noted."""
        with self._lock:
            self._ended += 1

    def note(self, hints: RateHints | None, permit: Permit, model: str) -> RateHints | None:
        """One more answer. Returns the hints by which a gate keeps calls off.

        Limits of several keys or models that take turns are not one limit: nothing is reported of them.
        """
        if hints is None:
            return None
        now_s = self._monotonic_s()
        place = f"{'' if permit.key is None else permit.key.id} {model}"[:200]
        with self._lock:
            if place != self._place:
                if self._place is not None and now_s - self._heard_s < _MIXED_S:
                    self._mixed_until_s = now_s + _MIXED_S
                self._place = place
                self._windows.clear()
                self._refills.clear()
            self._heard_s, self._is_active = now_s, True
            self._counted = max(self._counted, permit.mark)
            return RateHints(
                self._hear("requests", hints.requests, permit, now_s),
                self._hear("tokens", hints.tokens, permit, now_s),
                hints.requests_per_minute,
                hints.tokens_per_minute,
            )

    def report(self, *, tokens_each: Callable[[], int], permits: int | None, slots: int) -> ToldReport | None:
        """What to tell the store now; None where answers tell no limit. `slots`: of this worker, in use.

        `permits`: that it has left. While it needs some, other workers may get all answers.
        """
        if not self._is_active:
            return None
        now_s = self._monotonic_s()
        with self._lock:
            self._is_active = permits is not None or now_s - self._heard_s <= _SILENT_S
            if not self._is_active or now_s < self._mixed_until_s or self._place is None:
                return None
            in_flight = self._begun - self._ended
            told = {what: self._windows[what] for what in self._unreported if what in self._windows}
            self._unreported.clear()
            report = ToldReport(
                self._place,
                begun=self._begun - self._reported,
                held=(permits or 0) + max(0, slots - in_flight),
                in_flight=in_flight,
                uncounted=min(in_flight, self._begun - self._counted),
            )
            self._reported = self._begun
        requests, tokens = told.get("requests"), told.get("tokens")
        return replace(
            report,
            requests=None if requests is None else _in_calls(requests, 1, now_s),
            tokens=None if tokens is None else _in_calls(tokens, max(1, tokens_each()), now_s),
        )

    def keep(self, report: ToldReport | None) -> None:
        """The report did not arrive: it is said again."""
        if report is not None:
            with self._lock:
                self._unreported.update(self._windows)

    def _hear(self, what: str, allowance: Allowance, permit: Permit, now_s: float) -> Allowance:
        refill = self._refills[what] = note_refill(self._refills.get(what), allowance)
        span_ms = refill.span_ms if refill is not None and refill.is_even else None
        limit, reset_s, remaining = allowance.limit, allowance.reset_s, allowance.remaining
        if remaining is None or not reset_s or not 0 < reset_s <= _LONGEST_S:
            return allowance
        now_ms, reset_ms = round(now_s * 1000), round(reset_s * 1000)
        known = pass_reset(self._windows.get(what), now_ms=now_ms)
        # Whole seconds may be cut: the reset is then up to one later. That is too much of a short window.
        is_long = max(reset_ms, 0 if known is None else known.span_ms) >= _LONG_MS
        cut_s = (1.0 if is_long else reset_s / 20) if reset_s == int(reset_s) else 0.0
        told = Window(
            remaining,
            limit or 0,
            early_ms=round(permit.began_s * 1000) + reset_ms,
            late_ms=now_ms + reset_ms + round(cut_s * 1000),
            span_ms=reset_ms,
            at_ms=now_ms,
            each_us=max(1, round(span_ms * 1000 / limit)) if span_ms and limit else 0,
        )
        window = note_window(known, told, now_ms=now_ms)
        if window is None:
            return allowance
        if window != self._windows.get(what):
            self._windows[what] = window
            if not window.is_assumed:
                self._unreported.add(what)
        if remaining > 0:
            return allowance
        if window.left > 0:  # this was told of the window before
            return replace(allowance, reset_s=None)
        # Some is back soon of what comes back evenly, though all of it is not. Else others knew the end better.
        wait_s = reset_s if span_ms is None else span_ms / 100_000
        return replace(allowance, reset_s=min(reset_s, wait_s, (window.late_ms - now_ms) / 1000))


def _in_calls(window: Window, each: int, now_s: float) -> Window:
    now_ms = round(now_s * 1000)
    return replace(
        window,
        left=min(_ENOUGH, window.left // each),
        limit=max(1, min(_ENOUGH, window.limit // each)) if window.limit else 0,
        early_ms=window.early_ms - now_ms,
        late_ms=window.late_ms - now_ms,
        at_ms=window.at_ms - now_ms,
        each_us=window.each_us * each,
    )


def _until(counts: deque[tuple[float, int]], before_s: float) -> int:
    """The count at that moment, 0 if it is not known. Forgets what is older."""
    while len(counts) > 1 and counts[1][0] <= before_s:
        counts.popleft()
    return counts[0][1] if counts and counts[0][0] <= before_s else 0
