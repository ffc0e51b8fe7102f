"""Suspects: jobs that were lost with their worker too often to share a process. One at a time has its turn."""

from __future__ import annotations

import threading


class Suspects:
    """Who of the suspects that this process has met may wait to run alone, and who comes later. Thread-safe.

    Each turn empties the process of all other calls, before and meanwhile. So there is one at a time, and what
    the others wait for is published anew when it ends: by then the innocent have had the slots for a while, and
    a suspect may as well go to another process. Were all of them to wait here, they would hold every slot, and
    nobody else would get on until the last suspect was through.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._met: set[str] = set()
        self._put_off: set[str] = set()
        self._on_trial: str | None = None

    def puts_off(self, job_id: str) -> bool:
        """Whether the job is known to be one, and put off because it is another's turn."""
        with self._lock:
            if self._on_trial is None or job_id not in self._met:
                return False
            if self._on_trial != job_id:
                self._put_off.add(job_id)
            return True

    def begin_turn(self, job_id: str) -> bool:
        """Whether it is this job's turn: `end_turn` must follow. Otherwise it is put off until that of another ends."""
        with self._lock:
            self._met.add(job_id)
            if self._on_trial is None:
                self._on_trial = job_id
                return True
            if self._on_trial != job_id:
                self._put_off.add(job_id)
            return False

    def end_turn(self) -> list[str]:
        """The jobs that were put off meanwhile, by id, to be published again."""
        with self._lock:
            if self._on_trial is not None:
                self._met.discard(self._on_trial)
            self._on_trial = None
            put_off = sorted(self._put_off)
            self._put_off.clear()
            return put_off
