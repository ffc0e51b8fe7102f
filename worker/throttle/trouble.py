"""The failures like an outage that a process remembers: those of the calls that ended last, and the usual rate."""

from __future__ import annotations

from bisect import insort
from enum import Enum, auto

from worker.policy.outages import (
    HEALTHY_RATE,
    KNOWN_FROM,
    LATELY,
    MOST_FAILURES,
    count_excess,
    is_certain,
    is_doubtful,
    is_outage,
)

_LONGEST_LOOKED_AT = 5000  # five times the calls in flight, or those would always outweigh the failed ones
_BRIEF_S = 3.0  # the first probe begins after a second, and other processes see its answer a little later
_FORGOTTEN = 0.25  # of the most calls at once, with each call


class Suspicion(Enum):
    """What the failures of the window are."""

    NONE = auto()  # the jobs' own, or too few to say
    OPEN = auto()  # an outage, or an endpoint that has become flaky just now
    OUTAGE = auto()


class Trouble:
    """One for each `Evidence`, which holds its lock around each call. `number`: a call's number among the calls."""

    def __init__(self) -> None:
        self.jobs: dict[str, None] = {}  # whose calls failed, in the window
        self._excess = 0  # of these failures over the answers beside them
        self._numbers: list[int] = []  # the numbers of those calls, in order
        self._in_flight = 1.0  # the most calls at once, lately
        self._is_suspected = False  # in the window
        self._rate = self._recent = HEALTHY_RATE
        self._answers = 10.0
        self._failures = 0  # since the last success, also at a shut gate; not yet counted in the rates
        self._first_failed = 0  # the lowest number of their calls; one from before it proves nothing of them
        self._shut_s: float | None = None  # since when it is an outage

    @property
    def rate(self) -> float:
        """The usual share of calls that fail like an outage although there is none, over about the last 1,000 calls."""
        return self._rate

    def note_answer(self, number: int | None) -> None:
        """A call was answered. In an outage, calls that began before it may still be answered for minutes."""
        is_beside = number is None or number > self._first_failed
        if self._failures and is_beside:
            # A success among these failures shows that they were no outage: they count towards the usual rate.
            self._learn(1.0, self._failures)
            self._failures = 0
        self._learn(0.0, 1)
        self._in_flight = max(1.0, self._in_flight - _FORGOTTEN)
        if self._numbers and is_beside:
            self._excess = count_excess(self._excess, answers=1)
            if not self._excess:
                self._forget_window()

    def note_failure(self, number: int) -> None:
        """A call failed."""
        if not self._failures and not self._numbers:
            self._first_failed = number
        self._failures += 1
        self._first_failed = min(self._first_failed, number)

    def add(self, job_id: str, number: int, *, in_flight: int) -> None:
        """Takes the failure into the window. `in_flight`: the calls in flight when it failed, itself among them."""
        self.jobs[job_id] = None
        self._excess = count_excess(self._excess, failures=1)
        insort(self._numbers, number)
        del self._numbers[:-_LONGEST_LOOKED_AT]
        # Of calls that fail at the same moment the last one finds few in flight.
        self._in_flight = max(in_flight, self._in_flight - _FORGOTTEN)

    def suspect(self, *, calls: int, is_known: bool, now_s: float) -> Suspicion:
        """What the window shows, when there were `calls` calls so far. `is_known`: one of them was answered."""
        is_likely = is_outage(
            jobs=len(self.jobs),
            excess=self._excess,
            numbers=self._numbers,
            calls=calls,
            failure_rate=self._rate,
            is_known=is_known,
        )
        if is_likely and is_certain(
            excess=self._excess,
            numbers=self._numbers,
            recent_rate=self._recent,
            in_flight=self._in_flight,
        ):
            if self._shut_s is None:
                self._shut_s = now_s
            return Suspicion.OUTAGE
        self._is_suspected = self._is_suspected or is_likely
        is_open = self._is_suspected or is_doubtful(
            jobs=len(self.jobs),
            excess=self._excess,
            numbers=self._numbers,
            failure_rate=self._rate,
            recent_rate=self._recent,
            in_flight=self._in_flight,
        )
        return Suspicion.OPEN if is_open else Suspicion.NONE

    def reopened(self, served_s: float) -> None:
        """A probe was answered, which shows that the endpoint was serving at that time.

        Earlier failures were the outage's, and the usual rate leaves them out. But where the first probe was answered,
        there was hardly an outage: those that showed it are counted, and not what failed at the shut gate.
        """
        if self._shut_s is not None and served_s - self._shut_s <= _BRIEF_S:
            self._learn(1.0, min(self._failures, MOST_FAILURES))
        self._shut_s = None
        self._failures = 0
        self._forget_window()

    def _forget_window(self) -> None:
        self._excess, self._is_suspected = 0, False
        self.jobs.clear()
        self._numbers.clear()

    def _learn(self, value: float, times: int) -> None:
        self._answers = min(self._answers + times, KNOWN_FROM)
        self._rate += (value - self._rate) * min(1.0, times / self._answers)
        self._recent = value + (self._recent - value) * (1 - 1 / LATELY) ** times
