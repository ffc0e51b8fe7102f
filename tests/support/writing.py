"""Calls to a group writer from several threads, and a ledger whose trouble is arranged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

from tests.support.processes import wait_until
from worker.storage.engine import Ledger
from worker.storage.errors import DatabaseAway
from worker.storage.outcomes import ClaimedJob
from worker.storage.writer import GroupWriter


class TroubledLedger:
    """A ledger whose trouble is arranged: away for a while, or silent after a commit."""

    def __init__(self, inner: Ledger) -> None:
        self.inner = inner
        self.is_away = False
        self.silent_commits = 0  # so many transactions commit without a word
        self.failures_before: list[BaseException] = []  # raised one by one instead of running
        self.calls = 0
        self.changed = threading.Condition()
        self.go_on = threading.Event()  # cleared: it stands still
        self.go_on.set()

    def run(self, work: Callable[[Connection], Any]) -> Any:
        with self.changed:
            self.calls += 1
            self.changed.notify_all()
        assert self.go_on.wait(20)
        if self.failures_before:
            raise self.failures_before.pop(0)
        if self.is_away:
            raise DatabaseAway("away")
        answer = self.inner.run(work)
        if self.silent_commits:
            self.silent_commits -= 1
            raise DatabaseAway("nobody knows whether it was committed")
        return answer

    def wait_for_calls(self, n: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.calls >= n, timeout=10)


def claimed(writer: GroupWriter, id_: str) -> ClaimedJob:
    job = writer.claim(id_)
    assert job is not None
    return job


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Starts `work` in a thread; the answer is what it returned or the exception it raised."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(work())
        except Exception as exc:
            answer.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(20)
        assert not thread.is_alive(), "it waits for ever"
        return answer[0]

    return join


@contextmanager
def in_one_group(writer: GroupWriter) -> Iterator[None]:
    """What is asked for inside waits in line, and makes one group."""
    started, go_on = threading.Event(), threading.Event()

    def hold(_: Connection) -> None:
        started.set()
        assert go_on.wait(10)

    busy = writer.begin(hold)
    assert started.wait(10)
    try:
        yield
    finally:
        go_on.set()
    busy.result()


def wait_for_pending(writer: GroupWriter, count: int) -> None:
    wait_until(lambda: len(writer._pending) >= count, within_s=10, what="the requests are in line")


class Told:
    """An answer that nobody waits for: it notes what it is told, in which thread."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.errors: list[BaseException] = []
        self.threads: set[str] = set()
        self.is_told = threading.Event()

    def set_result(self, value: Any) -> None:
        self.results.append(value)
        self._note()

    def set_exception(self, exception: BaseException) -> None:
        self.errors.append(exception)
        self._note()

    def _note(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.is_told.set()
