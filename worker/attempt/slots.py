"""Slots: how many calls a process makes at once, some kept for lone jobs, and a place to run alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from worker.errors import Stopping


class _Places:
    """So many tokens, held one a job. A queue in C: a Semaphore costs several times as much a wake-up."""

    def __init__(self, count: int) -> None:
        self._tokens: SimpleQueue[None] = SimpleQueue()
        for _ in range(count):
            self._tokens.put(None)
        self.take = self._tokens.get

    def free(self) -> None:
        self._tokens.put(None)


class Place:
    """What a job holds while it is inside of the slots."""

    __slots__ = ("_held", "is_bulk")

    def __init__(self, held: tuple[_Places, ...], *, is_bulk: bool) -> None:
        self._held = held
        self.is_bulk = is_bulk

    def leave(self) -> None:
        """Lets the next job call; this one still counts as active until the end of `enter`."""
        held, self._held = self._held, ()
        for places in held:
            places.free()


class Slots:
    """Bulk jobs take one of `bulk_limit` places; lone jobs pass beside them; with `lone_limit`, all together
    never take more than the sum of both.

    A job that runs alone waits until no other call of this process is in flight, and holds new ones back. Then the
    others have their turn, for as long as they were held back, before the next one that runs alone has its own.
    """

    def __init__(self, bulk_limit: int, lone_limit: int | None = None) -> None:
        bulk, every = _Places(bulk_limit), None if lone_limit is None else _Places(bulk_limit + lone_limit)
        self._lone_needs = () if every is None else (every,)
        self._bulk_needs = (bulk, *self._lone_needs)
        self._idle = threading.Condition()
        self._active = 0
        self._solo_waiting = 0
        self._at_the_door = 0
        self._invited = 0  # of those at the door: no solo begins before they are in
        self._solos = 0
        self._door_is_open_until_s = 0.0
        self._is_solo_active = False
        self._is_stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping.is_set()

    @property
    def active(self) -> int:
        """Jobs inside: those that run alone, or wait to, are too."""
        return self._active + self._solo_waiting + self._is_solo_active

    def stop(self) -> None:
        """Lets nobody in any more; those who wait raise Stopping."""
        self._is_stopping.set()
        for places in self._bulk_needs:
            places.free()  # each one that wakes wakes the next
        with self._idle:
            self._idle.notify_all()

    def wait_until_idle(self, is_enough: Callable[[], bool], *, timeout_s: float | None = None) -> bool:
        """Whether no call was in flight in the end; gives up when `is_enough` says so, asked ten times a second."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._idle:
            while self.active and not is_enough() and (end_s is None or time.monotonic() < end_s):
                self._idle.wait(0.1)
            return self.active == 0

    @contextmanager
    def enter(self, *, is_bulk: bool) -> Iterator[Place]:
        """A place for one job, held while inside. Raises Stopping instead of waiting through a shutdown."""
        needs = self._bulk_needs if is_bulk else self._lone_needs
        for places in needs:
            places.take()
        place = Place(needs, is_bulk=is_bulk)
        try:
            with self._idle:
                if self.is_stopping or not self._is_door_open():
                    self._wait_at_the_door()
                self._active += 1
            try:
                yield place
            finally:
                with self._idle:
                    self._active -= 1
                    if self._solo_waiting or self.is_stopping:
                        self._idle.notify_all()
        finally:
            place.leave()

    def _is_door_open(self) -> bool:
        return not self._is_solo_active and (
            not self._solo_waiting or time.monotonic() < self._door_is_open_until_s
        )

    def _wait_at_the_door(self) -> None:
        arrived = self._solos
        self._at_the_door += 1
        # Whoever was there when a solo ended goes in, however late its thread wakes.
        self._idle.wait_for(lambda: self.is_stopping or self._solos > arrived or self._is_door_open())
        self._at_the_door -= 1
        self._invited = max(0, self._invited - (self._solos > arrived))
        if self.is_stopping:
            raise Stopping

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within `enter`: nobody else's call is in flight while inside. Raises Stopping."""
        with self._idle:
            self._active -= 1  # waits outside, so that two who want to be alone do not wait for each other
            self._solo_waiting += 1
            self._idle.notify_all()
            began_s = max(time.monotonic(), self._door_is_open_until_s)
            self._idle.wait_for(lambda: self.is_stopping or self._may_solo())
            self._solo_waiting -= 1
            if self.is_stopping:
                self._active += 1
                raise Stopping
            self._is_solo_active = True
        try:
            yield
        finally:
            with self._idle:
                self._is_solo_active = False
                self._active += 1
                self._solos += 1
                self._invited = self._at_the_door
                now_s = time.monotonic()
                self._door_is_open_until_s = now_s + max(0.0, now_s - began_s)
                self._idle.notify_all()

    def _may_solo(self) -> bool:
        return self._active == 0 and not self._is_solo_active and not self._invited
