"""Ended jobs leave the ledger, chosen by age or by batch, with their requests, results and attempts.

`survey` changes nothing, `remove` removes. A job that has not ended is never removed, nor one that a living run wants.
Usage stays unless it is to go as well. A removed job is forgotten: the same input is called, and paid for, again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from worker.errors import InUse
from worker.operations.errors import Unfinished
from worker.operations.run_locks import is_of_home, kept_from_running
from worker.reports.summary import format_count
from worker.settings import Settings
from worker.storage import prune_survey, pruning
from worker.storage.batches import Batch, count_states
from worker.storage.engine import Ledger
from worker.storage.prune_survey import Survey
from worker.storage.pruning import OfAge, OfBatch, Pruned


@dataclass(frozen=True, slots=True)
class ToPrune:
    """What may go: the ended jobs of `batch`, or without one those of all batches that ended before `before_ms`.

    `even_unfinished`: also what has ended of batches that are not done.
    """

    batch: Batch | None
    before_ms: int
    even_unfinished: bool = False


def survey(ledger: Ledger, settings: Settings, what: ToPrune) -> Survey:
    """What `remove` would remove just now; changes nothing. Raises what `remove` does."""
    with _chosen(ledger, settings, what) as chosen:
        return prune_survey.survey(ledger, chosen)


def remove(
    ledger: Ledger,
    settings: Settings,
    what: ToPrune,
    *,
    with_usage: bool,
    on_step: Callable[[int], None] | None = None,
) -> Pruned:
    """Removes it in small steps beside running workers, and says how many jobs went and how many stay.

    `on_step` gets the number removed so far after each step. Stopped half way, it goes on when it is called again.
    Raises InUse where the batch is run just now, and Unfinished where it is not done and not `even_unfinished`; then
    nothing is changed.
    """
    # A run that begins meanwhile waits, or is seen by the next step: it would find its jobs, and lose them.
    with _chosen(ledger, settings, what) as chosen:
        return pruning.prune(ledger, chosen, with_usage=with_usage, on_step=on_step)


@contextmanager
def _chosen(ledger: Ledger, settings: Settings, what: ToPrune) -> Iterator[OfAge | OfBatch]:
    """What is to go, as the storage asks for it. While inside, no run of this home begins."""
    with kept_from_running(ledger, settings, what.batch) as runs:
        if what.batch is None:
            yield OfAge(what.before_ms, what.even_unfinished, runs.idle, runs.find_living)
            return
        if what.batch.id in runs.living:
            raise InUse(f"{what.batch.id} has a live run: wait until it ends, or stop it")
        if not what.even_unfinished:
            _check_batch(ledger, settings, what.batch)
        yield OfBatch(what.batch.id)


def _check_batch(ledger: Ledger, settings: Settings, batch: Batch) -> None:
    """Raises Unfinished where the batch is not done, or may be going on in another home."""
    with ledger.read() as connection:
        counts = count_states(connection, batch.id)
    left = sum(count for state, count in counts.items() if not state.is_final)
    if left:
        raise Unfinished(
            f"{batch.id} has {format_count(left, 'job')} not ended: `antrean cancel {batch.id}` ends them"
        )
    if batch.submitted_at_ms is None:
        raise Unfinished(f"not all of {batch.id} is written down yet")
    if batch.kind == "run" and batch.held_at_ms is None and not is_of_home(batch, settings):
        raise Unfinished(f"{batch.id} is a run of {batch.details.get('home')}, and may still run there")
