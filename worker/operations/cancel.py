"""A batch or one job is cancelled: what is queued or waiting ends at once, a job that is running is asked to stop.

Its call may be paid for already, so it is left to end, and a result that it brings is kept. What has ended stays as it
is, and so do jobs that another batch wants too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schemas.job import JobState
from worker.clock import SystemClock
from worker.errors import NotFound
from worker.operations.batches import MOST_NAMED, find_whole_batch, missing_but_begun
from worker.operations.job_names import fetch_begun_jobs, find_whole_job_id
from worker.storage.batches import Batch, count_asked
from worker.storage.engine import Ledger, Transaction
from worker.storage.moves import Cancelled, cancel_batch, cancel_jobs
from worker.storage.reading import fetch_states

_KINDS = "batch and no job"


@dataclass(frozen=True, slots=True)
class CancelledBatch:
    """What cancelling a batch came to, in jobs.

    `ended` at once, `asked` to stop just now, `running` with a request to stop, just now or before, and `kept`
    because another batch wants them too.
    """

    batch: Batch
    ended: int
    asked: int
    running: int
    kept: int


@dataclass(frozen=True, slots=True)
class CancelledJob:
    """What cancelling one job came to: its state after it, and whether it was `ended`, or `asked` to stop."""

    job_id: str
    state: JobState
    is_ended: bool
    is_asked: bool


def cancel(ledger: Ledger, called: str, *, on_step: Callable[[int], None]) -> CancelledBatch | CancelledJob:
    """Cancels the batch or the job that is called so.

    A batch is named by its whole id; a job also by the id of its output line. `on_step` gets the number of jobs ended
    so far after each step of at most 500. Stopped half way, it goes on when it is called again. Raises NotFound
    where there is no such batch and no such job, and then changes nothing. It names those whose ids begin so.
    """
    try:
        batch = find_whole_batch(ledger, called, kinds=_KINDS)
    except NotFound as exc:
        job_id = find_whole_job_id(ledger, called)
        if job_id is not None:
            return _cancel_job(ledger, job_id)
        begun = {} if exc.problems else fetch_begun_jobs(ledger, called, limit=MOST_NAMED + 1)
        if begun:
            raise missing_but_begun(
                _KINDS, called, [f"{id_}  {state}" for id_, state in begun.items()]
            ) from None
        raise
    return _cancel_batch(ledger, batch, on_step)


def _cancel_batch(ledger: Ledger, batch: Batch, on_step: Callable[[int], None]) -> CancelledBatch:
    def step(connection: Transaction) -> Cancelled:
        return cancel_batch(connection, batch.id, now_ms=SystemClock().now_ms())

    ended = asked = kept = 0
    while True:
        # At most 500 rows a transaction, so that workers who record results get their turn between two.
        done = ledger.run(step)
        if not done.ended and not done.asked and not done.kept:
            break
        ended += done.ended
        asked += done.asked
        kept += done.kept
        on_step(ended)
    with ledger.read() as connection:
        running = count_asked(connection, batch.id)
    return CancelledBatch(batch, ended, asked, running, kept)


def _cancel_job(ledger: Ledger, job_id: str) -> CancelledJob:
    def work(connection: Transaction) -> tuple[bool, JobState]:
        is_done = cancel_jobs(connection, [job_id], now_ms=SystemClock().now_ms()) == 1
        return is_done, fetch_states(connection, [job_id])[job_id]

    is_done, state = ledger.run(work)
    is_asked = is_done and state is JobState.RUNNING
    return CancelledJob(job_id, state, is_ended=is_done and not is_asked, is_asked=is_asked)
