"""What people call jobs: an id, the beginning of one, the id of an output line, a custom_id. Changes nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from uuid import UUID

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.errors import InputError, NotFound
from worker.operations.batches import find_batch_or_none
from worker.reports.batchlines import LINE_ID
from worker.storage.cleaning import clean_text
from worker.storage.engine import Ledger
from worker.storage.job_list import Choice, ListedJob, find_ids, iterate_jobs
from worker.storage.reading import fetch_states
from worker.text.printable import printable

_MOST_SHOWN = 20
_DASHES = (8, 12, 16, 20)  # digits of a job's id before each of its dashes


def names_of(wanted: str) -> list[str]:
    """The ids that a job of this name may have: the name itself, or the id that an output line's id is made of."""
    digits = wanted.removeprefix(LINE_ID)
    if digits == wanted or not digits:
        return [wanted]
    if re.fullmatch("[0-9a-f]{32}", digits) is None:
        return [wanted, digits]
    return [wanted, digits, str(UUID(digits))]  # a producer may have made its id without dashes


def find_job_id(ledger: Ledger, called: str) -> str:
    """The id of the job that is called so: by its id, the beginning of it, or its output line's id.

    Raises NotFound where there is none, and InputError where there are several, which it lists.
    """
    whole = find_whole_job_id(ledger, called)
    if whole is not None:
        return whole
    shown = printable(clean_text(called) or "")
    if find_batch_or_none(ledger, called) is not None:
        raise InputError(f"{shown} is a batch: `antrean status {shown}` shows it")
    begun = fetch_begun_jobs(ledger, called, limit=_MOST_SHOWN + 1)
    if not begun:
        raise NotFound(f"there is no job {shown}: `antrean jobs` lists them")
    if len(begun) > 1:
        raise _several(f"ids that begin with {shown}", [f"{id_}  {state}" for id_, state in begun.items()])
    return next(iter(begun))


def find_whole_job_id(ledger: Ledger, called: str) -> str | None:
    """The id of the job with this id, or whose output line has it; None where there is none."""
    names = names_of(clean_text(called) or "")
    with ledger.read() as connection:
        states = fetch_states(connection, names)
    return next((name for name in names if name in states), None)


def fetch_begun_jobs(ledger: Ledger, called: str, *, limit: int) -> dict[str, JobState]:
    """The jobs whose ids, or those of whose output lines, begin so, with their states: by id, at most `limit`."""
    beginning = _beginning(clean_text(called) or "")
    if not beginning:
        return {}
    with ledger.read() as connection:
        begun = find_ids(connection, beginning, limit=limit)
        states = fetch_states(connection, begun)
    return {id_: states[id_] for id_ in begun if id_ in states}


def find_named_job_id(ledger: Ledger, custom_id: str, batch_id: str | None) -> str:
    """The id of the one job with this custom_id, of a batch or of all the ledger.

    Raises NotFound where there is none, and InputError where there are several, which it lists.
    """
    choice = Choice(batch_id=batch_id, custom_ids=(clean_text(custom_id) or "",))
    found = list(islice(iterate_jobs(ledger, choice, is_newest_first=True), _MOST_SHOWN + 1))
    ids = {job.id for job in found}  # one job may be wanted at two places
    if not ids:
        where = "" if batch_id is None else f" in {printable(batch_id)}"
        raise NotFound(
            f"no job has the custom_id {printable(custom_id)}{where}: it is taken as a whole; "
            "`antrean jobs` lists the jobs with their names"
        )
    if len(ids) > 1:
        raise _several(f"jobs named {printable(custom_id)}", list(map(_describe, found)))
    return found[0].id


def parse_kinds(names: list[str]) -> tuple[FailureKind, ...]:
    """The kinds of failure of these names. Raises InputError that lists the kinds."""
    stored = [kind for kind in FailureKind if kind is not FailureKind.INTERRUPTED]
    known = {kind.value: kind for kind in stored}
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise InputError(
            f"{printable(', '.join(unknown))} is no kind of failure; the kinds are: {', '.join(sorted(known))}"
        )
    return tuple(known[name] for name in names)


def _beginning(wanted: str) -> str:
    """The beginning of a job's own id, of that of its output line."""
    digits = wanted.removeprefix(LINE_ID)
    if digits == wanted or not digits or re.fullmatch("[0-9a-f]{1,32}", digits) is None:
        return wanted
    starts = (0, *_DASHES)
    ends = (*_DASHES, 32)
    return "-".join(part for start, end in zip(starts, ends, strict=True) if (part := digits[start:end]))


def _several(of_what: str, lines: Sequence[str]) -> InputError:
    if len(lines) > _MOST_SHOWN:
        lines = [*lines[: _MOST_SHOWN - 1], "… and more"]
        return InputError(f"there are many {of_what}; say which:", list(lines))
    return InputError(f"there are {len(lines)} {of_what}; say which:", list(lines))


def _describe(job: ListedJob) -> str:
    return f"{printable(job.id)}  {job.state}  {printable(job.batch_id or 'lone')}"
