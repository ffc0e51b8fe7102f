"""Reads jobs and results, in pages of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, Select, func, not_, select, tuple_, union_all

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.storage.engine import Ledger
from worker.storage.pauses import Pause, fetch_pause, fetch_pauses
from worker.storage.places import (
    AT_HOME,
    FAILURE_BODY,
    HTTP_STATUS,
    REQUEST_ID,
    RESULT,
    RESULT_OF_SUCCESS,
    USAGE_OF_RESULT,
    at_home,
    elsewhere,
)
from worker.storage.tables import failure_bodies, is_in, jobs, results, usage, wants
from worker.storage.wants import Wanted

_PAGE = 500
_MOST_BLOCKED = 20


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """An ended job, with the facts for its output line."""

    id: str
    custom_id: str | None
    source_key: str | None
    position: int
    state: JobState
    raw: bytes | None  # of a success: the completion as it came
    error_raw: bytes | None  # the endpoint's last error body, of a failure
    answer: str | None
    http_status: int | None
    request_id: str | None
    failure_kind: FailureKind | None
    failure_message: str | None
    finish_reason: str | None = None  # of a success


@dataclass(frozen=True, slots=True)
class Ending:
    """An ended job, with the tokens of its result, and its cost (nanodollars; None: not known)."""

    id: str
    state: JobState
    ended_at_ms: int
    prompt_tokens: int
    completion_tokens: int
    cost_nano: int | None
    failure_kind: str | None
    failure_message: str | None


_FACTS = (
    jobs.c.source_key,
    jobs.c.state,
    results.c.raw,
    failure_bodies.c.raw.label("error_raw"),
    results.c.answer,
    HTTP_STATUS,
    REQUEST_ID,
    jobs.c.failure_kind,
    jobs.c.failure_message,
    results.c.finish_reason,
)
_OUTCOME = AT_HOME.add_columns(*_FACTS).select_from(jobs.outerjoin(*RESULT).outerjoin(*FAILURE_BODY))
_ENDED = ("succeeded", "failed", "cancelled", "expired")


def iterate_batch_outcomes(ledger: Ledger, batch_id: str) -> Iterator[JobOutcome]:
    """The ended jobs that a batch wants, in the order of its input, with its names for them.

    Memory stays flat however many there are. Each page has its own transaction: none stays open while the caller
    pauses.
    """
    after = (-1, "")
    any_elsewhere = elsewhere(batch_id).limit(1)
    while True:
        with ledger.read() as connection:
            is_mixed = connection.execute(any_elsewhere).first() is not None
        page = _mixed_page_of if is_mixed else _page_of
        found = _fetch(ledger, page(batch_id, after))
        yield from found
        if len(found) < _PAGE:
            return
        after = (found[-1].position, found[-1].id)


def iterate_lone_outcomes(ledger: Ledger) -> Iterator[JobOutcome]:
    """The ended jobs of no batch that are not bulk, by id. A job without a custom_id gets its id as its name."""
    after = (-1, "")
    while True:
        # A bulk job that its batch no longer wants has no batch either. It is left out.
        found = _fetch(ledger, _page_of("", after).where(not_(jobs.c.is_bulk)))
        for one in found:
            yield one if one.custom_id is not None else replace(one, custom_id=one.source_key or one.id)
        if len(found) < _PAGE:
            return
        after = (found[-1].position, found[-1].id)


def iterate_outcomes(ledger: Ledger, ids: Sequence[str]) -> Iterator[JobOutcome]:
    """The ended jobs among `ids`, in the order given. A `Wanted` id gives the job its custom_id."""
    for start in range(0, len(ids), _PAGE):
        asked = ids[start : start + _PAGE]
        page = _OUTCOME.where(jobs.c.id.in_(sorted(set(asked))), jobs.c.state.in_(_ENDED))
        found = {outcome.id: outcome for outcome in _fetch(ledger, page)}
        for id_ in asked:
            if id_ in found:
                outcome = found[id_]
                yield replace(outcome, custom_id=id_.custom_id) if isinstance(id_, Wanted) else outcome


def _page_of(batch_id: str, after: tuple[int, str]) -> Select[Any]:
    """The next ended jobs with this home batch, after a position and an id."""
    return (
        _OUTCOME.where(
            jobs.c.batch_id == batch_id,
            tuple_(jobs.c.position, jobs.c.id) > after,
            jobs.c.state.in_(_ENDED),
        )
        .order_by(jobs.c.position, jobs.c.id)
        .limit(_PAGE)
    )


def _mixed_page_of(batch_id: str, after: tuple[int, str]) -> Select[Any]:
    """The next ended jobs that this batch wants, with any home batch, after a position and an id."""
    home = (
        at_home(batch_id)
        .where(tuple_(jobs.c.position, jobs.c.id) > after, jobs.c.state.in_(_ENDED))
        .order_by(jobs.c.position, jobs.c.id)
        .limit(_PAGE)
        .subquery()
    )
    beside = (
        elsewhere(batch_id)
        .select_from(wants.join(jobs, jobs.c.id == wants.c.job_id))
        .where(tuple_(wants.c.position, wants.c.job_id) > after, jobs.c.state.in_(_ENDED))
        .order_by(wants.c.position, wants.c.job_id)
        .limit(_PAGE)
        .subquery()
    )
    page = union_all(select(home), select(beside)).order_by("position", "id").limit(_PAGE).subquery()
    return (
        select(page.c.id, page.c.custom_id, page.c.position, *_FACTS)
        .select_from(page.join(jobs, jobs.c.id == page.c.id).outerjoin(*RESULT).outerjoin(*FAILURE_BODY))
        .order_by(page.c.position, page.c.id)
    )


def fetch_endings(connection: Connection, *, since_ms: int, limit: int = 20_000) -> list[Ending]:
    """Jobs that ended at or after `since_ms`, oldest first, at most `limit`."""
    statement = _endings().where(jobs.c.ended_at_ms >= since_ms).order_by(jobs.c.ended_at_ms).limit(limit)
    return [_ending(row) for row in connection.execute(statement)]


def fetch_states(connection: Connection, ids: Sequence[str]) -> dict[str, JobState]:
    """The states of `ids` (at most 500), by id."""
    rows = connection.execute(select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(list(ids))))
    return {row.id: JobState(row.state) for row in rows}


def fetch_endings_of(connection: Connection, ids: Sequence[str]) -> list[Ending]:
    """The ended jobs among `ids` (at most 500)."""
    statement = _endings().where(jobs.c.id.in_(list(ids)), jobs.c.state.in_(_ENDED))
    return [_ending(row) for row in connection.execute(statement)]


def _endings() -> Select[tuple[object, ...]]:
    return select(
        jobs.c.id,
        jobs.c.state,
        jobs.c.ended_at_ms,
        usage.c.prompt_tokens,
        usage.c.completion_tokens,
        usage.c.cost_nano,
        jobs.c.failure_kind,
        jobs.c.failure_message,
    ).select_from(jobs.outerjoin(*RESULT_OF_SUCCESS).outerjoin(*USAGE_OF_RESULT))


def _ending(row: Row[tuple[object, ...]]) -> Ending:
    values = row._mapping
    return Ending(
        id=values["id"],
        state=JobState(values["state"]),
        ended_at_ms=values["ended_at_ms"] or 0,
        prompt_tokens=values["prompt_tokens"] or 0,
        completion_tokens=values["completion_tokens"] or 0,
        cost_nano=values["cost_nano"],
        failure_kind=values["failure_kind"],
        failure_message=values["failure_message"],
    )


def _fetch(ledger: Ledger, page: Select[Any]) -> list[JobOutcome]:
    with ledger.read() as connection:
        rows = connection.execute(page).all()
    return [
        JobOutcome(
            id=row.id,
            custom_id=row.custom_id,
            source_key=row.source_key,
            position=row.position,
            state=JobState(row.state),
            raw=row.raw,
            error_raw=row.error_raw,
            answer=row.answer,
            http_status=row.http_status,
            request_id=row.request_id,
            failure_kind=None if row.failure_kind is None else FailureKind(row.failure_kind),
            failure_message=row.failure_message,
            finish_reason=row.finish_reason,
        )
        for row in rows
    ]


def has_answered(connection: Connection, endpoint: str) -> bool:
    """Whether the ledger has a result from this endpoint. Then a 404 is a job's own failure, not one of the setup."""
    statement = (
        select(results.c.job_id)
        .join(jobs, jobs.c.id == results.c.job_id)
        .where(jobs.c.endpoint == endpoint)
        .limit(1)
    )
    return connection.execute(statement).first() is not None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a job asks: which model, at which endpoint."""

    endpoint: str
    model: str


def fetch_asked(connection: Connection, job_id: str) -> Asked | None:
    """The model and the endpoint of a job; None where there is none with this id."""
    found = connection.execute(select(jobs.c.endpoint, jobs.c.model).where(jobs.c.id == job_id)).first()
    return None if found is None else Asked(found.endpoint, found.model)


def count_running(connection: Connection) -> int:
    """The number of jobs that are claimed now, by any worker."""
    statement = select(func.count()).select_from(jobs).where(is_in(JobState.RUNNING))
    return int(connection.execute(statement).scalar_one())


@dataclass(frozen=True, slots=True)
class Blocked:
    """A waiting job at a shut gate: its last failure, and when it is due again."""

    kind: str
    message: str | None
    not_before_ms: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps all jobs of an endpoint, or of a ledger, waiting, as far as the ledger has it."""

    pause: Pause | None
    blocked: Sequence[Blocked]  # earliest due first, at most 20


def fetch_trouble(connection: Connection, endpoint: str | None = None) -> Trouble:
    """What keeps the jobs of `endpoint` waiting, such as a pause or a refused key. None: of any endpoint."""
    if endpoint is None:
        pause = next(iter(fetch_pauses(connection)), None)
    else:
        pause = fetch_pause(connection, endpoint)
    statement = (
        select(jobs.c.failure_kind, jobs.c.failure_message, jobs.c.not_before_ms)
        .where(is_in(JobState.WAITING), jobs.c.blocked_since_ms.is_not(None))
        .order_by(jobs.c.not_before_ms)
        .limit(_MOST_BLOCKED)
    )
    if endpoint is not None:
        statement = statement.where(jobs.c.endpoint == endpoint)
    return Trouble(pause, [Blocked(*row) for row in connection.execute(statement)])
