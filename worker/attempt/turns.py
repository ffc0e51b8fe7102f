"""Turns of jobs that run alone: those that were lost with their worker too often to share a process."""

from __future__ import annotations

import threading


class Turns:
    """Which of the jobs that run alone may wait for the process to be empty, and which come later. Thread-safe.

    One at a time has its turn, in which no other job of the process is claimed or called. What the others wait for is
    published anew when the turn ends: by then the ordinary jobs have had the slots for a while, and a job that runs
    alone may as well go to another process. If all of them waited here, they would hold up the ordinary jobs until the
    last one was through.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._met: set[str] = set()
        self._put_off: set[str] = set()
        self._current: str | None = None

    def puts_off(self, job_id: str) -> bool:
        """Whether the job is known to run alone, and it is another's turn."""
        with self._lock:
            if self._current is None or job_id not in self._met:
                return False
            if self._current != job_id:
                self._put_off.add(job_id)
            return True

    def begin(self, job_id: str) -> bool:
        """Whether it is this job's turn: `end` must follow. Otherwise it is put off until that of another ends."""
        with self._lock:
            self._met.add(job_id)
            if self._current is None:
                self._current = job_id
                return True
            if self._current != job_id:
                self._put_off.add(job_id)
            return False

    def end(self) -> list[str]:
        """The jobs that were put off meanwhile, by id, to be published again."""
        with self._lock:
            if self._current is not None:
                self._met.discard(self._current)
            self._current = None
            put_off = sorted(self._put_off)
            self._put_off.clear()
            return put_off
