"""What a stopped command says last: which batch it worked on, how far it came, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from schemas.job import JobState
from worker.cli.console import note
from worker.errors import AntreanError
from worker.operations.batches import count_jobs
from worker.reports.summary import format_count
from worker.storage.engine import Ledger

_GOES_ON = "nothing is lost: the same command goes on from here"


class LastWords:
    """The last words of a run. They are said after its last call has ended, so that the counts are final."""

    def __init__(self) -> None:
        self._batch: tuple[Ledger, str] | None = None

    def are_of(self, ledger: Ledger, batch_id: str) -> None:
        """Names the batch that the last words are about. Without it there are none."""
        self._batch = ledger, batch_id

    def say(self) -> None:
        note(_GOES_ON if self._batch is None else f"{_describe(*self._batch)}; {_GOES_ON}")


@contextmanager
def said_of_submission(ledger: Ledger, batch_id: str, total: int) -> Iterator[None]:
    """While inside, Ctrl-C says how many of the `total` requests are written down."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"{_describe(ledger, batch_id, total)}; the same command writes down the others")
        raise


def _describe(ledger: Ledger, batch_id: str, total: int | None = None) -> str:
    try:
        counts = count_jobs(ledger, batch_id)
    except AntreanError:  # it is the batch that matters; what is wrong with the ledger was said
        return f"stopped at {batch_id}"
    known = sum(counts.values())
    if total is not None:
        return f"{batch_id}: {format_count(known)} of {format_count(total, 'request')} are written down"
    done = counts.get(JobState.SUCCEEDED, 0)
    left = sum(count for state, count in counts.items() if not state.is_final)
    return (
        f"{batch_id}: {format_count(done)} of {format_count(known, 'job')} done, "
        f"{format_count(known - done - left)} failed, {format_count(left)} left"
    )
