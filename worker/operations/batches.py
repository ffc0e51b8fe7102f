"""Batches as people and programs ask for them: found by their ids, listed, and counted. Changes nothing."""

from __future__ import annotations

from schemas.job import JobState
from worker.errors import InputError, NotFound
from worker.storage.batches import Batch, count_states, fetch_batch, fetch_batches, find_batches
from worker.storage.budgets import fetch_budgets_that_wait
from worker.storage.cleaning import clean_text
from worker.storage.engine import Ledger
from worker.text.printable import printable

MOST_NAMED = 5


def list_batches(ledger: Ledger, *, limit: int) -> list[tuple[Batch, dict[JobState, int]]]:
    """The latest batches, at most `limit`, the newest first, each with its number of jobs by state."""
    with ledger.read() as connection:
        return [(one, count_states(connection, one.id)) for one in fetch_batches(connection, limit=limit)]


def find_batches_at_budget(ledger: Ledger) -> frozenset[str]:
    """The ids of batches that wait at their budget."""
    with ledger.read() as connection:
        return frozenset(fetch_budgets_that_wait(connection))


def fetch_latest_batches(ledger: Ledger, *, limit: int) -> list[Batch]:
    """The latest batches, at most `limit`, the newest first. Costs less than `list_batches`."""
    with ledger.read() as connection:
        return fetch_batches(connection, limit=limit)


def find_named_batch(ledger: Ledger, called: str) -> Batch:
    """The batch with this id, or the only one whose id begins so, from 12 characters on.

    Raises NotFound where there is none, and InputError where there are several, of which it names five at most.
    """
    batch = find_batch_or_none(ledger, called)
    if batch is None:
        raise NotFound(f"there is no batch {printable(called)}: `antrean batches` lists them")
    return batch


def find_batch_or_none(ledger: Ledger, called: str) -> Batch | None:
    """What `find_named_batch` finds, or None where there is none. Raises InputError where there are several."""
    found = _find(ledger, called)
    if len(found) > 1:
        raise InputError(f"several batches begin with {printable(called)}; say which:", _cut(_name(found)))
    return found[0] if found else None


def find_whole_batch(ledger: Ledger, called: str, *, kinds: str = "batch") -> Batch:
    """The batch with this id, for what cannot be taken back: the beginning of an id is not enough.

    Raises NotFound where there is none. It names the batches whose ids begin so, five at most. `kinds` says in its
    sentence what was looked for.
    """
    found = _find(ledger, called)
    if found and found[0].id == clean_text(called):
        return found[0]
    if found:
        raise missing_but_begun(kinds, called, _name(found))
    raise NotFound(f"there is no {kinds} {printable(called)}: `antrean batches` lists the batches")


def missing_but_begun(kinds: str, called: str, lines: list[str]) -> NotFound:
    """The error of a name that is only the beginning of ids. `lines` tell of these; five are named."""
    return NotFound(
        f"there is no {kinds} {printable(called)}; give the whole id of one that begins so:", _cut(lines)
    )


def count_jobs(ledger: Ledger, batch_id: str) -> dict[JobState, int]:
    """The batch's number of jobs by state; states without one may be missing."""
    with ledger.read() as connection:
        return count_states(connection, batch_id)


def fetch_label(ledger: Ledger, batch_id: str) -> str | None:
    """What the batch with this id was made from; None where there is no such batch."""
    with ledger.read() as connection:
        batch = fetch_batch(connection, batch_id)
    return None if batch is None else batch.label


def _find(ledger: Ledger, called: str) -> list[Batch]:
    with ledger.read() as connection:
        return find_batches(connection, clean_text(called) or "", limit=MOST_NAMED + 1)


def _name(found: list[Batch]) -> list[str]:
    return [f"{one.id}  {printable(one.label)}" for one in found]


def _cut(lines: list[str]) -> list[str]:
    return [*lines[:MOST_NAMED], "… and more"] if len(lines) > MOST_NAMED else lines
