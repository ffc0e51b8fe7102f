"""Celery's result backend without results: they are in the ledger."""

from __future__ import annotations

from typing import Any, NoReturn

from celery.backends.base import DisabledBackend


class ResultsInLedger(NotImplementedError):
    """Raised when a program asks Celery for the result or the state of a job."""


class LedgerOnly(DisabledBackend):
    """A result backend without results. Each question raises ResultsInLedger, which says where the results are."""

    supports_autoexpire = (
        True  # else Celery's beat has a task clean it up every night, which no worker here runs
    )

    def _tell(self, task_id: Any = None, *_: Any, **__: Any) -> NoReturn:
        name = task_id if isinstance(task_id, str) else "JOB"
        raise ResultsInLedger(
            f"Celery keeps no result or state of antrean's jobs, the ledger does: `antrean show {name}` tells what "
            f"became of a job, `antrean results BATCH -o FILE` writes the results of a batch"
        )

    get_task_meta = get_task_meta_for = wait_for = get_many = _tell
    get_state = get_status = get_result = get_traceback = get_children = _tell
    forget = _tell

    def ensure_chords_allowed(self) -> NoReturn:
        self._tell()
