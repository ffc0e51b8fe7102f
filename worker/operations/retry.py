"""Ended jobs of a batch are queued again, each with all of its attempts. Jobs with a result are never called again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.clock import SystemClock
from worker.operations.steps import repeat_steps
from worker.storage.batches import Batch, count_states, resume_batch, resume_for_workers
from worker.storage.deadlines import find_other_expiry, note_deadline, set_expiry
from worker.storage.engine import Ledger, Transaction
from worker.storage.moves import retry_batch


@dataclass(frozen=True, slots=True)
class Retried:
    """How many jobs were queued again, and whether they wait because their batch `is_held` since its run stopped."""

    queued: int
    is_held: bool


def retry(
    ledger: Ledger, batch: Batch, *, states: Sequence[JobState], kinds: Sequence[FailureKind]
) -> Retried:
    """Queues the batch's jobs in one of these final states again; with `kinds` only failures of these kinds.

    Those of a run that has ended are for any worker from then on, until the run is started again. A batch that was
    held with open jobs stays held. The batch's deadline holds for them, unless it is over. Stopped half way, what was
    queued goes on, and another call queues the rest.
    """
    with ledger.read() as connection:
        was_idle = all(state.is_final for state in count_states(connection, batch.id))
    names = [one.value for one in kinds]

    def step(connection: Transaction) -> list[str]:
        now_ms = SystemClock().now_ms()
        ids = retry_batch(connection, batch.id, states=states, kinds=names, now_ms=now_ms)
        if ids and batch.deadline_ms is not None and batch.deadline_ms > now_ms:
            # A new generation has no expiry of its own. In this transaction: no job is called after the deadline.
            others = find_other_expiry(connection, batch.id, batch.deadline_ms)
            set_expiry(connection, others, batch.deadline_ms)
        elif ids and batch.deadline_ms is not None:
            note_deadline(connection, batch.id, None)  # it is over, and is not one of these jobs
        if ids and was_idle:
            # It is held because its run has ended, not because it was stopped. In this transaction: another call
            # would take the jobs queued here for those of a run that was stopped.
            _resume(batch)(connection)
        return ids

    queued = 0
    while ids := ledger.run(step):
        queued += len(ids)
    if queued and was_idle:
        leave_to_workers(ledger, batch)
    return Retried(queued, is_held=batch.held_at_ms is not None and not was_idle)


def leave_to_workers(ledger: Ledger, batch: Batch) -> None:
    """Lets jobs of the batch that were queued again go on: also those of a run, until it is run again."""
    repeat_steps(ledger, _resume(batch))


def _resume(batch: Batch) -> Callable[[Transaction], int]:
    """One step of letting the batch go on: at most 500 jobs, and their number."""
    return partial(resume_for_workers if batch.kind == "run" else resume_batch, batch_id=batch.id)
