"""Slots: how many calls a process makes at once, some kept for lone jobs, and a place to run alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopping(Exception):
    """The worker is shutting down: nothing new begins."""


class Slots:
    """Bulk jobs take one of `bulk_limit` places; lone jobs pass beside them; with `lone_limit`, all together
    never take more than the sum of both.

    A job that runs alone waits until no other call of this process is in flight, and holds new ones back.
    """

    def __init__(self, bulk_limit: int, lone_limit: int | None = None) -> None:
        self._bulk = threading.Semaphore(bulk_limit)
        unbounded = lone_limit is None
        self._all = None if unbounded else threading.Semaphore(bulk_limit + (lone_limit or 0))
        self._idle = threading.Condition()
        self._active = 0
        self._solo_waiting = 0
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
        self._bulk.release()  # each one that wakes wakes the next
        if self._all is not None:
            self._all.release()
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
    def enter(self, *, is_bulk: bool) -> Iterator[None]:
        """A place for one job, held while inside. Raises Stopping instead of waiting through a shutdown."""
        with self._place(self._bulk if is_bulk else None), self._place(self._all):
            with self._idle:
                self._idle.wait_for(lambda: self.is_stopping or not self._solo_waiting + self._is_solo_active)
                if self.is_stopping:
                    raise Stopping
                self._active += 1
            try:
                yield
            finally:
                with self._idle:
                    self._active -= 1
                    if self._solo_waiting or self.is_stopping:
                        self._idle.notify_all()

    @staticmethod
    @contextmanager
    def _place(places: threading.Semaphore | None) -> Iterator[None]:
        if places is None:
            yield
            return
        with places:
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within `enter`: nobody else's call is in flight while inside. Raises Stopping."""
        with self._idle:
            self._active -= 1  # waits outside, so that two who want to be alone do not wait for each other
            self._solo_waiting += 1
            self._idle.notify_all()
            self._idle.wait_for(lambda: self.is_stopping or (self._active == 0 and not self._is_solo_active))
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
                self._idle.notify_all()
