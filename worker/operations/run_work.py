"""The jobs of a run of documents: each document is written down once, however many runs want it.

The same folder, prompt, model, endpoint and home are the same batch again. A job that has a result is
never called again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from schemas.job import JobState
from worker.clock import SystemClock
from worker.errors import InputError
from worker.files.names import as_file_name, as_text
from worker.ids import new_batch_id
from worker.intake.submit import identify, make_job, submit_many
from worker.operations.inputs import name_inputs
from worker.operations.run_locks import RunLock, home_name
from worker.operations.steps import repeat_steps
from worker.settings import SIMULATION, Settings
from worker.sources.documents import Document, DocumentSet, source_key
from worker.sources.prompt import Prompt
from worker.storage.batches import Batch, find_batch, finish_submission, make_batch
from worker.storage.calls import CallSums, sum_calls
from worker.storage.engine import Ledger
from worker.storage.intake import KnownJob, NewJob
from worker.storage.moves import retry_jobs
from worker.storage.tables import MAX_ROWS
from worker.storage.unwanted import remove_wants
from worker.storage.wants import Wanted, bring_home, fetch_places, keep_going


@dataclass(slots=True)
class Work:
    """The jobs of one run: all of them in the order of the documents, and those still to be done.

    An id comes twice where two documents are the same: each is `Wanted` under its own name.
    """

    batch_id: str
    names: Sequence[str] = ()  # of the documents, in their order; requests have names of their own
    ids: list[str] = field(default_factory=list)
    done: int = 0
    new: int = 0
    again: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    began_at_ms: int = field(default_factory=lambda: SystemClock().now_ms())

    def add(self, known: Sequence[KnownJob]) -> None:
        """Adds the next jobs, in the order of the documents."""
        for job in known:
            id_ = Wanted(job.id, self.names[len(self.ids)]) if self.names else job.id
            self.ids.append(id_)
            self.new += job.is_new
            if job.state is JobState.SUCCEEDED:
                self.done += 1
                continue
            self.open.append(id_)
            if job.state.is_final:
                self.again.append(id_)


def check_documents(documents: Sequence[Document], template: Prompt, model: str, settings: Settings) -> None:
    """Renders every document once before anything is written down: all problems are named at once."""
    template.check(model, settings.allow_zero_temperature)
    problems: list[str] = []
    for document in documents:
        try:
            template.render(
                document, default_model=model, allow_zero_temperature=settings.allow_zero_temperature
            )
        except InputError as exc:
            problems += exc.problems or [str(exc)]
    if problems:
        raise InputError("some documents do not make a request; nothing was queued:", problems)


def find_run(ledger: Ledger, settings: Settings, source: Path, template: Prompt, model: str) -> Batch | None:
    """The batch of this run; None where it was not made before.

    The same input, prompt, model, endpoint and home are the same batch. The home counts because a path means other
    documents on another machine, or in another container.
    """
    home, parts = home_name(settings), _identity(settings, source, template, model)
    with ledger.read() as connection:
        # An earlier version's key has no home in it; its batch goes on in the home that made it.
        earlier = find_batch(connection, identify("run", *parts))
        if earlier is not None and earlier.details.get("home") == home:
            return earlier
        return find_batch(connection, identify("run", home, *parts))


def make_run(ledger: Ledger, settings: Settings, source: Path, template: Prompt, model: str) -> Batch:
    """The batch of this run: the one that `find_run` finds, or a new one."""
    home, parts = home_name(settings), _identity(settings, source, template, model)
    return find_run(ledger, settings, source, template, model) or ledger.run(
        partial(
            make_batch,
            batch_id=new_batch_id(),
            kind="run",
            label=f"{Path(as_text(Path(os.path.abspath(source)))).name} × {Path(template.label).name}",
            endpoint=settings.endpoint,
            idempotency_key=identify("run", home, *parts),
            details={"home": home, **name_inputs(source=source, prompt=Path(as_file_name(template.label)))},
            now_ms=SystemClock().now_ms(),
        )
    )


def _identity(settings: Settings, source: Path, template: Prompt, model: str) -> tuple[str, ...]:
    return as_text(source.resolve()), template.digest, model, settings.endpoint


def submit_run(
    ledger: Ledger,
    settings: Settings,
    batch: Batch,
    found: DocumentSet,
    template: Prompt,
    model: str,
    lock: RunLock,
) -> Work:
    """All jobs of the run: new ones, those that are known, and those that failed before, queued again.

    What the folder held before, and holds no more, is let go, unless another run of the batch still works on it.
    """
    clock = SystemClock()
    # Beside the ledger's folder, so that a project that moves keeps the identity of its documents.
    base = settings.home.parent.parent if settings.endpoint == SIMULATION else settings.home.parent

    def jobs() -> Iterator[NewJob]:
        for position, document in enumerate(found.documents, start=1):
            request = template.render(
                document, default_model=model, allow_zero_temperature=settings.allow_zero_temperature
            )
            key = source_key(document, base)
            yield make_job(
                request,
                endpoint=settings.endpoint,
                batch_id=batch.id,
                position=position,
                custom_id=document.relative,
                source_key=key,
                is_bulk=True,
                expires_at_ms=batch.deadline_ms,
                identity=("run", key),
            )

    work = Work(batch.id, names=[document.relative for document in found.documents])
    submit_many(ledger, jobs(), clock=clock, on_chunk=work.add)
    take_up(ledger, work)
    total = ledger.run(partial(finish_submission, batch_id=batch.id, now_ms=clock.now_ms()))
    if total > len(work.ids):
        with lock.alone() as is_alone:
            if is_alone:
                _remove_other_wants(ledger, work, now_ms=clock.now_ms())
        ledger.run(partial(finish_submission, batch_id=batch.id, now_ms=clock.now_ms()))
    return work


def take_up(ledger: Ledger, work: Work) -> None:
    """Queues all jobs of a run again that have ended without success, and takes back requests to stop the others."""
    if len(work.open) > work.new:
        # Another run may have made them, and an operator may have cancelled them: this run needs them now.
        for some in _pages(work.open):
            ledger.run(partial(keep_going, ids=some))
    for some in _pages(work.again):
        ledger.run(partial(retry_jobs, ids=some, now_ms=SystemClock().now_ms()))
    repeat_steps(ledger, partial(bring_home, batch_id=work.batch_id))


def sum_run_calls(ledger: Ledger, work: Work) -> CallSums:
    """What the calls of the run's jobs came to since it began. Raises DatabaseAway."""
    return sum_calls(ledger, work.open, since_ms=work.began_at_ms)


def _remove_other_wants(ledger: Ledger, work: Work, *, now_ms: int) -> None:
    """Lets go of jobs whose documents the folder held before, and holds no more, or at another position."""
    after = (-1, "")
    while True:
        with ledger.read() as connection:
            places = fetch_places(connection, work.batch_id, after=after)
        gone = [
            (position, job_id)
            for position, job_id in places
            if not 1 <= position <= len(work.ids) or work.ids[position - 1] != job_id
        ]
        if gone:
            ledger.run(partial(remove_wants, batch_id=work.batch_id, places=gone, now_ms=now_ms))
        if len(places) < MAX_ROWS:
            return
        after = places[-1]


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + MAX_ROWS] for start in range(0, len(ids), MAX_ROWS))
