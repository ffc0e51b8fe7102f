"""Endpoints as models, for a simulation in which time is a number: what they do with calls, and when."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

REFUSAL_S = 0.03


class Time:
    """Events in the order of their time; those of one time in the order in which they were planned."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, wait_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + wait_s, next(self._numbers), do))

    def run(self, until_s: float, is_over: Callable[[], bool] = lambda: False) -> None:
        while self._events and self._events[0][0] <= until_s and not is_over():
            self.now_s, _, do = heapq.heappop(self._events)
            do()


@dataclass(slots=True, eq=False)
class Call:
    """One call. `size`: its length beside the average call's. `end` is told once whether it was answered."""

    size: float
    end: Callable[[bool], None]
    finish: float = 0.0

    def __lt__(self, other: Call) -> bool:
        return self.finish < other.finish


@dataclass
class Endpoint:
    """Answers each call after `call_s` times its size, and refuses those that `refuses` says."""

    time: Time
    call_s: float = 0.5
    refuses: Callable[[float], bool] = lambda now_s: False
    in_flight: int = 0  # those that were not refused

    def begin(self, call: Call) -> None:
        if self.refuses(self.time.now_s) or self.is_refused():
            self.time.after(REFUSAL_S, lambda: call.end(False))
            return
        self.in_flight += 1
        self.serve(call)

    def is_refused(self) -> bool:
        return False

    def serve(self, call: Call) -> None:
        self.time.after(self.call_s * call.size, lambda: self.answer(call))

    def answer(self, call: Call) -> None:
        self.in_flight -= 1
        call.end(True)


@dataclass
class HardLimit(Endpoint):
    """Refuses above `capacity` at once, without a word of when to come back."""

    capacity: Callable[[float], int] = lambda now_s: 40

    def is_refused(self) -> bool:
        return self.in_flight >= self.capacity(self.time.now_s)


@dataclass
class Queue(Endpoint):
    """Serves `servers` calls at once. The others wait in a line without end."""

    servers: Callable[[float], int] = lambda now_s: 20
    busy: int = 0
    line: deque[Call] = field(default_factory=deque)

    def serve(self, call: Call) -> None:
        self.line.append(call)
        self._next()

    def answer(self, call: Call) -> None:
        self.busy -= 1
        super().answer(call)
        self._next()

    def _next(self) -> None:
        while self.line and self.busy < self.servers(self.time.now_s):
            self.busy += 1
            super().serve(self.line.popleft())


@dataclass
class Batching(Endpoint):
    """A batching server: the calls in flight share its work, which grows nearly linearly up to a knee, then no more.

    A call alone takes `call_s` times its size.
    """

    knee: Callable[[float], int] = lambda now_s: 24
    speed: Callable[[float], float] = lambda now_s: 1.0
    loss: float = 0.0  # each call above the knee costs this part of the work
    bend: float = 0.15  # at the knee, a call is so much slower than alone
    done: list[tuple[float, float]] = field(default_factory=list)  # work done until then, of all calls
    _work: float = 0.0  # what a call that was here from the beginning has got
    _at_s: float = 0.0
    _calls: list[Call] = field(default_factory=list)
    _turn: int = 0

    def rate(self, calls: int) -> float:
        """Work a second, in calls of average size. 1 / call_s for a call alone."""
        knee = self.knee(self.time.now_s)
        busy = min(calls, knee)
        slower = 1 - self.bend * (busy - 1) / max(1, knee - 1)
        slower *= max(0.2, 1 - self.loss * (calls - busy))
        return busy * slower * self.speed(self.time.now_s) / self.call_s

    def serve(self, call: Call) -> None:
        self._advance()
        call.finish = self._work + call.size
        heapq.heappush(self._calls, call)
        self._plan()

    def _advance(self) -> None:
        if self._calls:
            work = (self.time.now_s - self._at_s) * self.rate(len(self._calls))
            self._work += work / len(self._calls)
            self.done.append((self.time.now_s, work + (self.done[-1][1] if self.done else 0.0)))
        self._at_s = self.time.now_s

    def done_a_second(self, from_s: float, until_s: float) -> float:
        """Work done in this time, also for calls that had not ended."""
        first, last = (self.done[bisect_left(self.done, (at_s, 0.0)) - 1] for at_s in (from_s, until_s))
        return (last[1] - first[1]) / (last[0] - first[0])

    def _plan(self) -> None:
        self._turn += 1
        if self._calls:
            turn, n = self._turn, len(self._calls)
            wait_s = max(0.0, self._calls[0].finish - self._work) * n / self.rate(n)
            self.time.after(min(wait_s, 1.0), lambda: self._end(turn))  # the knee may move meanwhile

    def _end(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._advance()
        ended = []
        while self._calls and self._calls[0].finish <= self._work + 1e-9:
            ended.append(heapq.heappop(self._calls))
        for call in ended:
            self.answer(call)
        self._plan()


@dataclass
class RateLimit(Endpoint):
    """Allows `rate` calls a second, `burst` of them at once; the others are refused."""

    rate: float = 5.0
    burst: float = 10.0
    _tokens: float = math.inf
    _at_s: float = 0.0

    def is_refused(self) -> bool:
        now_s = self.time.now_s
        self._tokens = min(self.burst, self._tokens + (now_s - self._at_s) * self.rate)
        self._at_s = now_s
        if self._tokens < 1:
            return True
        self._tokens -= 1
        return False


@dataclass
class MinuteLimit(Endpoint):
    """Allows `each_minute` calls in each minute of the clock, and refuses the others until the next one begins."""

    each_minute: int = 600
    _minute: int = -1
    _count: int = 0

    def is_refused(self) -> bool:
        minute = int(self.time.now_s // 60)
        if minute != self._minute:
            self._minute, self._count = minute, 0
        self._count += 1
        return self._count > self.each_minute


@dataclass
class SlopeLimit(Endpoint):
    """Refuses a fast rise: above 8, no more in flight than 1.5 times the average of the last ten seconds."""

    usual: float = 0.0
    _at_s: float = 0.0

    def is_refused(self) -> bool:
        part = math.exp(-(self.time.now_s - self._at_s) / 10.0)
        self.usual = self.usual * part + self.in_flight * (1 - part)
        self._at_s = self.time.now_s
        return self.in_flight >= max(8.0, 1.5 * self.usual)


@dataclass
class Flaky(Endpoint):
    """Refuses one call in `one_in`, whatever is in flight."""

    one_in: int = 100
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def is_refused(self) -> bool:
        return self.rng.randrange(self.one_in) == 0
