"""The jobs of one run: written down once, taken over where another run left them, held when the run ends early."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from schemas.job import JobState
from worker.clock import SystemClock
from worker.embedded.home import try_lock
from worker.errors import InputError
from worker.ids import new_batch_id
from worker.settings import SIMULATION, Settings
from worker.sources.documents import Document, DocumentSet, source_key
from worker.sources.prompt import Prompt
from worker.storage.batches import (
    Batch,
    count_states,
    fetch_open_runs,
    finish_submission,
    hold_batch,
    make_batch,
    resume_batch,
    take_over,
)
from worker.storage.engine import Ledger
from worker.storage.intake import KnownJob, NewJob
from worker.storage.moves import retry_jobs
from worker.submit import identify, make_job, submit_many

_PAGE = 500


@dataclass(slots=True)
class Work:
    """The jobs of one run: all of them in the order of the documents, and those still to be done."""

    batch_id: str
    ids: list[str] = field(default_factory=list)
    done: int = 0
    new: int = 0
    again: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def add(self, known: Sequence[KnownJob]) -> None:
        for job in known:
            self.ids.append(job.id)
            self.new += job.is_new
            if job.state is JobState.SUCCEEDED:
                self.done += 1
                continue
            self.open.append(job.id)
            if job.state.is_final:
                self.again.append(job.id)


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


def make_run(ledger: Ledger, settings: Settings, source: Path, template: Prompt, model: str) -> Batch:
    """The batch of this run: the same input, prompt, model and endpoint are the same batch again."""
    root = str(source.resolve())
    return ledger.run(
        partial(
            make_batch,
            batch_id=new_batch_id(),
            kind="run",
            label=f"{source.name} × {Path(template.label).name}",
            endpoint=settings.endpoint,
            idempotency_key=identify("run", root, template.digest, model, settings.endpoint),
            details={"home": _home_name(settings)},
            now_ms=SystemClock().now_ms(),
        )
    )


def submit_run(
    ledger: Ledger, settings: Settings, batch: Batch, found: DocumentSet, template: Prompt, model: str
) -> Work:
    """All jobs of the run: new ones, those that are known, and those that failed before, queued again."""
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
                identity=("run", key),
            )

    work = Work(batch.id)
    submit_many(ledger, jobs(), clock=clock, on_chunk=work.add)
    for start in range(0, len(work.again), _PAGE):
        ledger.run(partial(retry_jobs, ids=work.again[start : start + _PAGE], now_ms=clock.now_ms()))
    if len(work.open) > work.new:
        # Another run may have made them, and be held: this one needs them now.
        for start in range(0, len(work.open), _PAGE):
            ledger.run(partial(take_over, job_ids=work.open[start : start + _PAGE], batch_id=batch.id))
    ledger.run(partial(finish_submission, batch_id=batch.id, now_ms=clock.now_ms()))
    return work


@contextmanager
def worked_on(ledger: Ledger, settings: Settings, batch: Batch) -> Iterator[None]:
    """While inside, the batch's jobs are worked on; after it, only if another run of the same batch lives.

    Nobody shall pay for jobs of a run that somebody walked away from, because another one came along.
    """
    folder = settings.home / "runs"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{batch.id}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        ledger.run(partial(resume_batch, batch_id=batch.id))
        yield
    finally:
        with ledger.read() as connection:
            is_open = any(not state.is_final for state in count_states(connection, batch.id))
        if is_open and try_lock(descriptor):
            ledger.run(partial(hold_batch, batch_id=batch.id, now_ms=SystemClock().now_ms()))
        os.close(descriptor)


def hold_abandoned(ledger: Ledger, settings: Settings) -> list[tuple[Batch, int]]:
    """Runs of this home that were killed with jobs left, now held, each with the number of those jobs."""
    with ledger.read() as connection:
        runs = fetch_open_runs(connection, endpoint=settings.endpoint, home=_home_name(settings))
    held = []
    for batch in runs:
        if not _is_run_by_somebody(settings.home / "runs" / f"{batch.id}.lock"):
            ledger.run(partial(hold_batch, batch_id=batch.id, now_ms=SystemClock().now_ms()))
            with ledger.read() as connection:
                counts = count_states(connection, batch.id)
            held.append((batch, sum(count for state, count in counts.items() if not state.is_final)))
    return held


def _is_run_by_somebody(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def _home_name(settings: Settings) -> str:
    """This home among those that may share a database."""
    return f"{socket.gethostname()}:{settings.home}"
