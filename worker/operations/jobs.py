"""Jobs one by one: lists of them, and all facts of one. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.errors import NotFound
from worker.operations.batches import find_named_batch
from worker.operations.job_names import find_job_id, find_named_job_id
from worker.storage.cleaning import clean_text
from worker.storage.engine import Ledger
from worker.storage.job_list import Choice, ListedJob, Texts, iterate_jobs
from worker.storage.story import Story, fetch_story
from worker.text.printable import printable


def list_jobs(
    ledger: Ledger,
    *,
    batch: str | None = None,
    is_lone: bool = False,
    states: Sequence[JobState] = (),
    kinds: Sequence[FailureKind] = (),
    custom_ids: Sequence[str] = (),
    texts: frozenset[Texts] = frozenset(),
) -> Iterator[ListedJob]:
    """The jobs that fit all that is given: those of a batch in the order of its input, others the newest first.

    They are read page by page: memory stays flat, and a reader that pauses holds no transaction open. Raises at once
    what `find_named_batch` raises.
    """
    choice = Choice(
        batch_id=None if batch is None else find_named_batch(ledger, batch).id,
        is_lone=is_lone,
        states=tuple(states),
        kinds=tuple(kinds),
        custom_ids=tuple(clean_text(name) or "" for name in custom_ids),
    )
    return iterate_jobs(ledger, choice, texts=texts, is_newest_first=True)


def fetch_story_of(ledger: Ledger, called: str, *, with_content: bool) -> Story:
    """The story of the job that is called so: by its id, the beginning of it, or its output line's id.

    Texts are in it only `with_content`. Raises NotFound where there is no such job, InputError where there are several.
    """
    return _fetch_story(ledger, find_job_id(ledger, called), with_content=with_content)


def fetch_story_of_named(ledger: Ledger, custom_id: str, batch: str | None, *, with_content: bool) -> Story:
    """The same of the one job with this custom_id, of a batch or of all the ledger."""
    batch_id = None if batch is None else find_named_batch(ledger, batch).id
    return _fetch_story(ledger, find_named_job_id(ledger, custom_id, batch_id), with_content=with_content)


def _fetch_story(ledger: Ledger, job_id: str, *, with_content: bool) -> Story:
    with ledger.read() as connection:
        story = fetch_story(connection, job_id, with_content=with_content)
    if story is None:
        raise NotFound(f"the job {printable(job_id)} was removed just now")
    return story
