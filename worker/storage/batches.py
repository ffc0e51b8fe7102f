"""Batches: made once for an idempotency key, counted from their jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, exists, func, select, union, union_all, update

from schemas.job import JobState
from worker.errors import InputError
from worker.policy.fairness import USUAL_WEIGHT
from worker.storage.due import unmark_published
from worker.storage.tables import batches, budgets, insert_or_ignore, is_in, is_published, jobs, wants
from worker.storage.wants import OPEN, bring_home, hand_over

_SHORTEST_PREFIX = 12
_OPEN_KIND = "tasks"
_RUN_KIND, _SUBMIT_KIND = "run", "submit"
_FOR_WORKERS = "is_for_workers"
CLOSED_BATCH = "batch: is one that `antrean run` or `antrean submit` made; messages may join their own only"
_HAS_OPEN_JOBS = exists().where(jobs.c.batch_id == batches.c.id, is_in(*OPEN)).correlate(batches)
WANTED_ELSEWHERE = wants.join(jobs, jobs.c.id == wants.c.job_id)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch. `submitted_at_ms` is None while its jobs are still being written down."""

    id: str
    kind: str
    label: str
    endpoint: str
    total: int
    created_at_ms: int
    submitted_at_ms: int | None
    held_at_ms: int | None
    details: Mapping[str, Any]
    weight: float = USUAL_WEIGHT

    @property
    def is_closed(self) -> bool:
        """Whether it was made from a file or a folder: no message joins it, and its jobs have its endpoint."""
        return self.kind != _OPEN_KIND

    @property
    def deadline_ms(self) -> int | None:
        """After this time none of its jobs is called."""
        return self.details.get("deadline_ms")

    @property
    def is_for_workers(self) -> bool:
        """Whether jobs of this run were queued again after its end, for any worker: see `resume_for_workers`."""
        return bool(self.details.get(_FOR_WORKERS))


def make_batch(
    connection: Connection,
    batch_id: str,
    *,
    kind: str,
    label: str,
    endpoint: str,
    idempotency_key: str | None,
    details: Mapping[str, Any] | None = None,
    now_ms: int,
) -> Batch:
    """The batch with this idempotency key: the one that exists, or a new one."""
    connection.execute(
        insert_or_ignore(connection, batches),
        {
            "id": batch_id,
            "idempotency_key": idempotency_key,
            "kind": kind,
            "label": label,
            "endpoint": endpoint,
            "total": 0,
            "created_at_ms": now_ms,
            "submitted_at_ms": None,
            "held_at_ms": None,
            "details": dict(details or {}),
        },
    )
    chosen = (
        batches.c.id == batch_id if idempotency_key is None else batches.c.idempotency_key == idempotency_key
    )
    return _batch(connection.execute(select(batches).where(chosen)).one())


def find_batch(connection: Connection, idempotency_key: str) -> Batch | None:
    """The batch with this idempotency key."""
    row = connection.execute(
        select(batches).where(batches.c.idempotency_key == idempotency_key)
    ).one_or_none()
    return None if row is None else _batch(row)


def ensure_open_batches(
    connection: Connection, batch_ids: Iterable[str], *, endpoint: str, now_ms: int
) -> None:
    """Makes those of `batch_ids` that are missing, as batches that jobs may join at any time."""
    rows: list[dict[str, object]] = [
        {
            "id": batch_id,
            "idempotency_key": None,
            "kind": _OPEN_KIND,
            "label": batch_id,
            "endpoint": endpoint,
            "total": 0,
            "created_at_ms": now_ms,
            "submitted_at_ms": now_ms,
            "held_at_ms": None,
            "details": {},
        }
        for batch_id in sorted(set(batch_ids))
    ]
    if rows:
        connection.execute(insert_or_ignore(connection, batches), rows)


def fetch_closed(connection: Connection, batch_ids: Iterable[str]) -> set[str]:
    """The ids among `batch_ids` of batches that were made from a file or a folder. No message may join these."""
    wanted = sorted(set(batch_ids))
    if not wanted:
        return set()
    closed = select(batches.c.id).where(batches.c.id.in_(wanted), batches.c.kind != _OPEN_KIND)
    return set(connection.execute(closed).scalars())


def hold_batch(connection: Connection, batch_id: str, *, now_ms: int) -> int:
    """Holds the batch of a run: its jobs are not relayed or claimed. Calls in flight end, and their results are kept.

    A batch that was also submitted is not held (see `free_batch`), nor one that is left to the workers (see
    `resume_for_workers`). Open jobs that another batch wants, which is not held, go on with that batch: at most 500 are
    moved here, and their number is returned. `hand_over` moves the rest.
    """
    if not _lock_details(connection, batch_id).get(_FOR_WORKERS):
        connection.execute(
            update(batches)
            .where(batches.c.id == batch_id, batches.c.kind == _RUN_KIND, batches.c.held_at_ms.is_(None))
            .values(held_at_ms=now_ms)
        )
    return hand_over(connection, batch_id)


def resume_batch(connection: Connection, batch_id: str) -> int:
    """Ends the hold: the batch's jobs go on. Their hints were dropped meanwhile, so all jobs are published again.

    Jobs of held batches that this batch wants go on with it: at most 500 are moved here, and their number is returned.
    `bring_home` moves the rest.
    """
    held = connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.held_at_ms.is_not(None))
        .values(held_at_ms=None)
    )
    if held.rowcount:
        published = select(jobs.c.id).where(is_published(), jobs.c.batch_id == batch_id)
        unmark_published(connection, sorted(connection.execute(published).scalars()))
    return bring_home(connection, batch_id)


def free_batch(connection: Connection, batch_id: str) -> int:
    """Makes the batch of a run independent of runs, as it was also submitted: it goes on, and no run's end holds it.

    Returns the same as `resume_batch`.
    """
    connection.execute(
        update(batches).where(batches.c.id == batch_id, batches.c.kind == _RUN_KIND).values(kind=_SUBMIT_KIND)
    )
    return resume_batch(connection, batch_id)


def resume_for_workers(connection: Connection, batch_id: str) -> int:
    """Leaves the batch of a run to any worker: it goes on, and is not held until it is run again.

    Returns the same as `resume_batch`.
    """
    note_detail(connection, batch_id, _FOR_WORKERS, True)
    return resume_batch(connection, batch_id)


def begin_run(connection: Connection, batch_id: str) -> bool:
    """Whether the batch exists. Marks that a run of it begins, whose end will hold it again.

    Waits for a prune that is removing jobs of the batch: jobs that exist after this call are not removed.
    """
    found = connection.execute(select(batches).where(batches.c.id == batch_id).with_for_update()).first()
    if found is not None and _batch(found).is_for_workers:
        note_detail(connection, batch_id, _FOR_WORKERS, False)
    return found is not None


def is_held(connection: Connection, batch_id: str) -> bool:
    """Whether the batch is held. False for a batch that does not exist."""
    held = select(batches.c.id).where(batches.c.id == batch_id, batches.c.held_at_ms.is_not(None))
    return connection.execute(held).first() is not None


def fetch_held(connection: Connection, endpoint: str) -> list[str]:
    """Ids of the endpoint's batches that are held, or wait at their budget, and are the home batch of open jobs."""
    # Each by its partial index: this is asked with each turn of the relay.
    waiting = select(budgets.c.batch_id).where(budgets.c.waits_since_ms.is_not(None))
    held, at_budget = (
        select(batches.c.id).where(is_so, batches.c.endpoint == endpoint, _HAS_OPEN_JOBS)
        for is_so in (batches.c.held_at_ms.is_not(None), batches.c.id.in_(waiting))
    )
    return list(connection.execute(union(held, at_budget)).scalars())


def move_run(connection: Connection, batch_id: str, home: str) -> None:
    """Records the home folder in which the run goes on: the run's lock is in it."""
    note_detail(connection, batch_id, "home", home)


def fetch_unheld_runs(connection: Connection, *, home: str) -> list[Batch]:
    """Batches of runs in this home folder that are not held, oldest first. Each run is alive, or was killed."""
    rows = connection.execute(
        select(batches)
        .where(batches.c.kind == _RUN_KIND, batches.c.held_at_ms.is_(None))
        .order_by(batches.c.created_at_ms)
    )
    return [batch for batch in map(_batch, rows) if batch.details.get("home") == home]


def count_open_at_home(connection: Connection, batch_id: str) -> int:
    """The number of open jobs whose home batch this is. They would wait if it were held."""
    statement = select(func.count()).select_from(jobs).where(jobs.c.batch_id == batch_id, is_in(*OPEN))
    return int(connection.execute(statement).scalar_one())


def count_asked(connection: Connection, batch_id: str) -> int:
    """The number of running jobs with this home batch that are to be cancelled."""
    statement = select(func.count()).where(
        jobs.c.batch_id == batch_id, is_in(JobState.RUNNING), jobs.c.is_cancel_requested
    )
    return int(connection.execute(statement).scalar_one())


def finish_submission(connection: Connection, batch_id: str, *, now_ms: int) -> int:
    """Marks the batch as written down, and returns its number of jobs. Raises InputError if it was pruned."""
    at_home = select(func.count()).select_from(jobs).where(jobs.c.batch_id == batch_id)
    elsewhere = select(func.count()).select_from(wants).where(wants.c.batch_id == batch_id)
    total = sum(int(connection.execute(count).scalar_one()) for count in (at_home, elsewhere))
    finished = connection.execute(
        update(batches).where(batches.c.id == batch_id).values(total=total, submitted_at_ms=now_ms)
    )
    if not finished.rowcount:
        raise InputError(f"{batch_id} was pruned while it was written down: submit it again")
    return total


def fetch_batch(connection: Connection, batch_id: str) -> Batch | None:
    """The batch with this id; None where there is none."""
    row = connection.execute(select(batches).where(batches.c.id == batch_id)).one_or_none()
    return None if row is None else _batch(row)


def find_batches(connection: Connection, called: str, *, limit: int) -> list[Batch]:
    """The batch with this id, alone; without one those whose ids begin so, in the order of their ids, at most `limit`.

    The beginning of an id must have at least 12 characters: `batch_` alone is not enough.
    """
    batch = fetch_batch(connection, called)
    if batch is not None or len(called) < _SHORTEST_PREFIX:
        return [] if batch is None else [batch]
    begun = batches.c.id.startswith(called, autoescape=True)
    rows = connection.execute(select(batches).where(begun).order_by(batches.c.id).limit(limit))
    return [_batch(row) for row in rows]


def fetch_batches(connection: Connection, *, limit: int = 20) -> list[Batch]:
    """Batches, newest first, at most `limit`."""
    rows = connection.execute(
        select(batches).order_by(batches.c.created_at_ms.desc(), batches.c.id.desc()).limit(limit)
    )
    return [_batch(row) for row in rows]


def count_states(connection: Connection, batch_id: str | None = None) -> dict[JobState, int]:
    """The number of jobs by state, of one batch or of the whole ledger. States without jobs are absent.

    A job that the batch wants at two places counts twice.
    """
    of_home = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    if batch_id is None:
        return {JobState(state): count for state, count in connection.execute(of_home)}
    counts: Counter[JobState] = Counter()
    # Two statements, each with its index: counting a union would sort a million rows.
    for state, count in connection.execute(
        union_all(
            of_home.where(jobs.c.batch_id == batch_id),
            select(jobs.c.state, func.count())
            .select_from(WANTED_ELSEWHERE)
            .where(wants.c.batch_id == batch_id)
            .group_by(jobs.c.state),
        )
    ):
        counts[JobState(state)] += count
    return dict(counts)


def _lock_details(connection: Connection, batch_id: str) -> Mapping[str, Any]:
    """The batch's details, locked until this transaction ends; empty if the batch is gone."""
    found = select(batches.c.details).where(batches.c.id == batch_id).with_for_update()
    return connection.execute(found).scalar_one_or_none() or {}


def note_detail(connection: Connection, batch_id: str, name: str, value: object) -> None:
    """Records a fact of the batch, by name, in place of an earlier one."""
    details = {**_lock_details(connection, batch_id), name: value}
    connection.execute(update(batches).where(batches.c.id == batch_id).values(details=details))


def _batch(row: Row[Any]) -> Batch:
    return Batch(
        id=row.id,
        kind=row.kind,
        label=row.label,
        endpoint=row.endpoint,
        total=row.total,
        created_at_ms=row.created_at_ms,
        submitted_at_ms=row.submitted_at_ms,
        held_at_ms=row.held_at_ms,
        details=row.details,
        weight=USUAL_WEIGHT if row.weight is None else row.weight,
    )
