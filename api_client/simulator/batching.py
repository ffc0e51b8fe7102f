"""A batching server: calls in flight share its tokens a second, and none is ever refused."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

_CLOSE_S = 1e-6


class Sharing:
    """The arithmetic of a shared rate. Pure: times are arguments, in seconds.

    Each call gets `rate` tokens a second while no more than `knee` calls are in flight. Beyond that all of them share
    `rate * knee` evenly, so the total stays flat and each call takes longer. `knee` None: no bound.
    """

    def __init__(self, *, rate: float, knee: float | None, now: float) -> None:
        self._rate, self._knee = rate, knee
        self._at = now
        self._served = 0.0  # tokens that a call has got which was there from the beginning
        self._line: list[tuple[float, int]] = []  # (served when it is done, ticket)
        self._open: set[int] = set()
        self._done: list[int] = []
        self._tickets = count()

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def configure(self, *, rate: float, knee: float | None, now: float) -> None:
        """Uses another rate and knee from `now` on, also for calls in flight."""
        self._advance(now)
        self._rate, self._knee = rate, knee

    def enter(self, tokens: int, now: float) -> int:
        """A ticket for a call of so many tokens."""
        self._advance(now)
        ticket = next(self._tickets)
        self._open.add(ticket)
        heapq.heappush(self._line, (self._served + tokens, ticket))
        return ticket

    def leave(self, ticket: int, now: float) -> None:
        """The call is given up."""
        self._advance(now)
        self._open.discard(ticket)
        if ticket in self._done:
            self._done.remove(ticket)

    def pop_done(self, now: float) -> list[int]:
        """Tickets of calls that have all their tokens, in the order of their ends; they are no longer in flight."""
        self._advance(now)
        done, self._done = self._done, []
        return done

    def next_end_in_s(self) -> float | None:
        """Seconds from the last `now` until the next call is done if nothing changes; None if there is none to come."""
        if self._done:
            return 0.0
        end = self._next_end()
        return None if end is None else max(0.0, end - self._at)

    def _call_rate(self) -> float:
        if self._knee is None or len(self._open) <= self._knee:
            return self._rate
        return self._rate * self._knee / len(self._open)

    def _next_end(self) -> float | None:
        """When the next call is done if nothing changes; None if there is none to come."""
        while self._line and self._line[0][1] not in self._open:
            heapq.heappop(self._line)
        speed = self._call_rate()
        if not self._line or speed <= 0:
            return None
        return self._at + (self._line[0][0] - self._served) / speed

    def _advance(self, now: float) -> None:
        """From end to end: a call that is looked at late takes no share from the others after its end."""
        while (end := self._next_end()) is not None and end <= now + _CLOSE_S:
            finish, ticket = heapq.heappop(self._line)
            self._at, self._served = max(self._at, end), max(self._served, finish)
            self._open.discard(ticket)
            self._done.append(ticket)
        self._served += self._call_rate() * max(0.0, now - self._at)
        self._at = max(self._at, now)


class BatchingServer:
    """Calls back when a call's tokens are made, on the running event loop."""

    def __init__(self, *, rate: float, knee: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._sharing = Sharing(rate=rate, knee=knee, now=self._loop.time())
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def configure(self, *, rate: float, knee: float | None) -> None:
        self._sharing.configure(rate=rate, knee=knee, now=self._loop.time())
        self._set_timer()

    def enter(self, tokens: int, then: Callable[[], None]) -> Callable[[], None]:
        """Begins a call: `then` is called when its tokens are made. Returns what gives it up."""
        ticket = self._sharing.enter(tokens, self._loop.time())
        self._callbacks[ticket] = then
        self._set_timer()

        def give_up() -> None:
            if self._callbacks.pop(ticket, None) is not None:
                self._sharing.leave(ticket, self._loop.time())
                self._set_timer()

        return give_up

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = self._sharing.next_end_in_s()
        self._timer = None if delay_s is None else self._loop.call_later(delay_s, self._finish)

    def _finish(self) -> None:
        for ticket in self._sharing.pop_done(self._loop.time()):
            self._callbacks.pop(ticket)()
        self._set_timer()
