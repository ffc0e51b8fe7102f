"""Lists of jobs: those of a batch, the lone ones, or all, with filters. Memory stays flat however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    func,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
)

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.storage.engine import Ledger
from worker.storage.places import (
    AT_HOME,
    FAILURE_BODY,
    HTTP_STATUS,
    REQUEST_ID,
    RESULT_OF_SUCCESS,
    USAGE_OF_RESULT,
    at_home,
    elsewhere,
)
from worker.storage.tables import (
    IDLE,
    AnyRow,
    attempts,
    batches,
    failure_bodies,
    is_in,
    jobs,
    requests,
    results,
    usage,
    wants,
)
from worker.storage.wants import OPEN

_LOOKED_AT = 5_000  # rows that one page reads, with those that the filters leave out
_LOOKED_AT_WITH_TEXTS = 250


class Texts(StrEnum):
    """Texts that are read only if they are asked for."""

    PROMPT = "prompt"
    ANSWER = "answer"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which jobs to list: of a batch, of no batch (`is_lone`), or of the whole ledger. Empty filters match any job."""

    batch_id: str | None = None
    is_lone: bool = False
    states: tuple[JobState, ...] = ()
    kinds: tuple[FailureKind, ...] = ()  # of the last failure, also of a job that waits for a retry
    custom_ids: tuple[str, ...] = ()  # with `batch_id` as in that batch, else as in any batch


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job in a list. Texts are None unless they were asked for and are there."""

    id: str
    batch_id: str | None
    position: int  # in the batch
    custom_id: str | None
    state: JobState
    is_held: bool  # it waits for a call, and its home batch is held
    failure_kind: str | None
    http_status: int | None
    request_id: str | None
    model: str
    endpoint: str
    claims: int
    finish_reason: str | None  # of a success, as are latency and tokens
    latency_ms: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_nano: int | None
    created_at_ms: int
    not_before_ms: int | None  # of a job that waits
    ended_at_ms: int | None
    request: str | None  # the body that is sent
    answer: str | None
    error: str | None  # the last failure's message
    error_body: bytes | None  # what the endpoint sent with it, of a job that failed


def iterate_jobs(
    ledger: Ledger,
    choice: Choice,
    *,
    texts: frozenset[Texts] = frozenset(),
    is_newest_first: bool = False,
    looked_at: int | None = None,
) -> Iterator[ListedJob]:
    """The chosen jobs. Those of a batch come in the order of its input, with its names for them.

    Others come by id, which is in the order of their creation; in falling order if `is_newest_first`.
    Each page has its own transaction, which reads `looked_at` rows: no transaction stays open while the caller pauses,
    and none is long, even if the filters match few of a million jobs.
    """
    if looked_at is None:
        looked_at = _LOOKED_AT_WITH_TEXTS if texts else _LOOKED_AT
    after: tuple[int, str] | None = None
    while True:
        with ledger.read() as connection:
            order = _order_of(connection, choice, is_falling=is_newest_first and choice.batch_id is None)
            last = connection.execute(order.find_last(after, looked_at)).first()
            through = None if last is None else (last.position, last.id)
            rows = connection.execute(_page(choice, texts, order, after, through)).all()
        yield from (_listed(row, choice) for row in rows)
        if through is None:
            return
        after = through


def find_ids(connection: Connection, beginning: str, *, limit: int) -> list[str]:
    """Ids of jobs that begin with `beginning`, ascending, at most `limit`."""
    # Not LIKE, which ignores case in SQLite. All of the index of ids is read: 0.1 s for a million jobs.
    chosen = func.substr(jobs.c.id, 1, len(beginning)) == beginning
    return list(
        connection.execute(select(jobs.c.id).where(chosen).order_by(jobs.c.id).limit(limit)).scalars()
    )


def count_open_lone(connection: Connection) -> int:
    """The number of open jobs without a batch that are not bulk."""
    statement = select(func.count()).select_from(jobs).where(_IS_LONE, is_in(*OPEN))
    return int(connection.execute(statement).scalar_one())


_IS_LONE = (jobs.c.batch_id == "") & not_(jobs.c.is_bulk)


@dataclass(frozen=True, slots=True)
class _Order:
    """The rows to list, in order: `id`, and the batch's `position` and `custom_id` for it."""

    sources: tuple[Select[Any], ...]
    is_by_id: bool  # else by position and id
    is_falling: bool

    def between(self, after: tuple[int, str] | None, through: tuple[int, str] | None) -> FromClause:
        """The rows after `after`, up to and with `through`. None: from the beginning, or to the end."""
        ranged = [
            source.where(*self._bounds(tuple(source.selected_columns)[:2], after, through))
            for source in self.sources
        ]
        return (ranged[0] if len(ranged) == 1 else union_all(*ranged)).subquery("place")

    def find_last(self, after: tuple[int, str] | None, count: int) -> Select[Any]:
        """The last of the next `count` rows; no row if there are fewer."""
        ranged = []
        for source in self.sources:
            columns = tuple(source.selected_columns)[:2]
            some = source.where(*self._bounds(columns, after, None)).order_by(*self._sorted(*columns))
            if len(self.sources) == 1:
                return some.offset(count - 1).limit(1)
            ranged.append(some.limit(count).subquery())
        place = union_all(*(select(one.c.id, one.c.position) for one in ranged)).subquery()
        return (
            select(place.c.id, place.c.position)
            .order_by(*self._sorted(place.c.id, place.c.position))
            .offset(count - 1)
            .limit(1)
        )

    def sort(self, place: FromClause) -> list[ColumnElement[Any]]:
        return self._sorted(place.c.id, place.c.position)

    def _sorted(self, id_: ColumnElement[Any], position: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        key = [id_] if self.is_by_id else [position, id_]
        return [column.desc() for column in key] if self.is_falling else key

    def _bounds(
        self,
        columns: tuple[Any, ...],
        after: tuple[int, str] | None,
        through: tuple[int, str] | None,
    ) -> list[ColumnElement[bool]]:
        id_, position = columns
        key: Any = id_ if self.is_by_id else tuple_(position, id_)
        bounds = []
        if after is not None:
            start: Any = after[1] if self.is_by_id else after
            bounds.append(key < start if self.is_falling else key > start)
        if through is not None:
            end: Any = through[1] if self.is_by_id else through
            bounds.append(key >= end if self.is_falling else key <= end)
        return bounds


def _order_of(connection: Connection, choice: Choice, *, is_falling: bool) -> _Order:
    if choice.is_lone:
        return _Order((AT_HOME.where(_IS_LONE),), is_by_id=False, is_falling=is_falling)
    if choice.batch_id is None:
        return _Order((AT_HOME,), is_by_id=True, is_falling=is_falling)
    home, beside = at_home(choice.batch_id), elsewhere(choice.batch_id)
    is_mixed = connection.execute(beside.limit(1)).first() is not None
    return _Order((home, beside) if is_mixed else (home,), is_by_id=False, is_falling=is_falling)


def _page(
    choice: Choice,
    texts: frozenset[Texts],
    order: _Order,
    after: tuple[int, str] | None,
    through: tuple[int, str] | None,
) -> Select[Any]:
    place = order.between(after, through)
    source = (
        place.join(jobs, jobs.c.id == place.c.id)
        .outerjoin(batches, batches.c.id == jobs.c.batch_id)
        .outerjoin(*RESULT_OF_SUCCESS)
        .outerjoin(*USAGE_OF_RESULT)
        .outerjoin(
            attempts, (attempts.c.job_id == results.c.job_id) & (attempts.c.number == results.c.number)
        )
    )
    columns: list[Any] = [
        place.c.id,
        place.c.position,
        place.c.custom_id,
        jobs.c.batch_id,
        jobs.c.state,
        batches.c.held_at_ms,
        jobs.c.failure_kind,
        HTTP_STATUS,
        REQUEST_ID,
        jobs.c.model,
        jobs.c.endpoint,
        jobs.c.claims,
        results.c.finish_reason,
        attempts.c.latency_ms,
        usage.c.prompt_tokens,
        usage.c.completion_tokens,
        usage.c.cost_nano,
        jobs.c.created_at_ms,
        jobs.c.not_before_ms,
        jobs.c.ended_at_ms,
    ]
    if Texts.PROMPT in texts:
        source = source.outerjoin(requests, requests.c.job_id == jobs.c.id)
        columns.append(requests.c.body.label("request"))
    if Texts.ANSWER in texts:
        columns.append(results.c.answer)
    if Texts.ERROR in texts:
        source = source.outerjoin(*FAILURE_BODY)
        columns += [jobs.c.failure_message.label("error"), failure_bodies.c.raw.label("error_body")]
    return (
        select(*columns).select_from(source).where(*_conditions(choice, place)).order_by(*order.sort(place))
    )


def _conditions(choice: Choice, place: FromClause) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [true()]
    if choice.states:
        # As an expression, so that no index of states is used: the pages are read in their order, without a sort.
        state = jobs.c.state.concat("")
        conditions.append(state.in_([state.value for state in choice.states]))
    if choice.kinds:
        conditions.append(jobs.c.failure_kind.in_([kind.value for kind in choice.kinds]))
    if choice.custom_ids:
        is_so_named: ColumnElement[bool] = place.c.custom_id.in_(choice.custom_ids)
        if choice.batch_id is None:
            others = select(wants.c.job_id).where(wants.c.custom_id.in_(choice.custom_ids))
            is_so_named = or_(is_so_named, jobs.c.id.in_(others))
        conditions.append(is_so_named)
    return conditions


def _listed(row: AnyRow, choice: Choice) -> ListedJob:
    return ListedJob(
        id=row.id,
        batch_id=choice.batch_id or row.batch_id or None,
        position=row.position,
        custom_id=row.custom_id,
        state=JobState(row.state),
        is_held=row.held_at_ms is not None and row.state in IDLE,
        failure_kind=row.failure_kind,
        http_status=row.http_status,
        request_id=row.request_id,
        model=row.model,
        endpoint=row.endpoint,
        claims=row.claims,
        finish_reason=row.finish_reason,
        latency_ms=row.latency_ms,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        cost_nano=row.cost_nano,
        created_at_ms=row.created_at_ms,
        not_before_ms=row.not_before_ms if row.state == JobState.WAITING else None,
        ended_at_ms=row.ended_at_ms,
        request=getattr(row, "request", None),
        answer=getattr(row, "answer", None),
        error=getattr(row, "error", None),
        error_body=getattr(row, "error_body", None),
    )
