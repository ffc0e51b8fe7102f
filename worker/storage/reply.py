"""Where the writer puts its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, cast

from worker.storage.errors import DatabaseAway

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Answer(Protocol[T_contra]):
    """Where the writer puts its answer, in its own thread: nothing there may wait, and an error there ends the writer.

    The first call counts; a later one must be ignored. There is one where a record was abandoned and is written after
    all, and where the writer dies.
    """

    def set_result(self, value: T_contra) -> None:
        """What was asked for."""

    def set_exception(self, exception: BaseException) -> None:
        """Why it was not to be had."""


class OnceAnswer(Generic[T]):
    """An answer that calls one of two functions, once."""

    __slots__ = ("_waiting",)

    def __init__(
        self, on_result: Callable[[T], object], on_exception: Callable[[BaseException], object]
    ) -> None:
        self._waiting = [(on_result, on_exception)]

    def set_result(self, value: T) -> None:
        """Calls `on_result`, if this is the first word."""
        on_result, _ = self._take()
        on_result(value)

    def set_exception(self, exception: BaseException) -> None:
        """Calls `on_exception`, if this is the first word."""
        _, on_exception = self._take()
        on_exception(exception)

    def _take(self) -> tuple[Callable[[T], object], Callable[[BaseException], object]]:
        try:
            return self._waiting.pop()  # in one step: the writer, and who ends the worker, may answer at once
        except IndexError:
            return _ignore, _ignore


def _ignore(_: object) -> None:
    """A later word."""


class Reply(Generic[T]):
    """What the writer will say to one who waits: a Future without its Condition, which costs ten times as much."""

    __slots__ = ("_exception", "_lock", "_value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._exception: BaseException | None = None
        self._value: T | None = None

    def result(self, within_s: float | None = None) -> T:
        """Blocks until it is said; raises DatabaseAway if that takes longer. For one thread, once."""
        if not self._lock.acquire(timeout=-1 if within_s is None else within_s):
            raise DatabaseAway(f"the database has not answered for {within_s:g} s")
        if self._exception is not None:
            raise self._exception
        return cast("T", self._value)

    def set_result(self, value: T) -> None:
        self._value = value
        self._say()

    def set_exception(self, exception: BaseException) -> None:
        self._exception = exception
        self._say()

    def _say(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:  # said before: a record was abandoned, and now its fate is known after all
            return
