"""The Core tables of the SQLModel rows, and conditions that many statements share."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, String, Table, literal_column
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel

from schemas.job import JobState
from schemas.rows import (
    AttemptRow,
    BatchRow,
    BudgetRow,
    DetailRow,
    FailureBodyRow,
    IdentityRow,
    JobRow,
    LimitChangeRow,
    LimitRow,
    PauseRow,
    RequestRow,
    ReservationRow,
    ResultRow,
    UsageRow,
    WantRow,
    WorkerRow,
)


def _table(row: type[SQLModel]) -> Table:
    table = row.__table__  # type: ignore[attr-defined]
    assert isinstance(table, Table)
    return table


jobs = _table(JobRow)
wants = _table(WantRow)
requests = _table(RequestRow)
attempts = _table(AttemptRow)
results = _table(ResultRow)
failure_bodies = _table(FailureBodyRow)
usage = _table(UsageRow)
batches = _table(BatchRow)
details = _table(DetailRow)
pauses = _table(PauseRow)
budgets = _table(BudgetRow)
reservations = _table(ReservationRow)
workers = _table(WorkerRow)
identity = _table(IdentityRow)
limits = _table(LimitRow)
limit_changes = _table(LimitChangeRow)

AnyRow = Row[*tuple[Any, ...]]
MAX_ROWS = 500  # most rows that one multi-row write locks
# States of an open job that no worker has claimed. If cancelled, it ends at once; if its home batch is held, it waits.
IDLE = (JobState.QUEUED, JobState.WAITING)


def is_in(*states: JobState) -> ColumnElement[bool]:
    """A condition: the state is one of `states`. They are literals in the statement.

    With bound values, the plan of a prepared statement could not use the partial indexes.
    """
    names = [literal_column(f"'{state.value}'", String) for state in states]
    return jobs.c.state == names[0] if len(names) == 1 else jobs.c.state.in_(names)


def is_ready() -> ColumnElement[bool]:
    """A condition: queued and not published."""
    return is_in(JobState.QUEUED) & jobs.c.published_at_ms.is_(None)


def is_published() -> ColumnElement[bool]:
    """A condition: queued and published."""
    return is_in(JobState.QUEUED) & jobs.c.published_at_ms.is_not(None)


def insert_or_ignore(connection: Connection, table: Table) -> Any:
    """An INSERT that does not change a row that exists already."""
    return _build_insert_or_ignore(connection.dialect.name, table)


def upsert(connection: Connection, table: Table, *keys: str) -> Any:
    """An INSERT that overwrites a row with the same `keys`."""
    return build_upsert(connection.dialect.name, table, keys)


# Built once for each table. Built for every group, they took a twentieth of a worker's time.
@cache
def _build_insert_or_ignore(dialect: str, table: Table) -> Any:
    return _insert(dialect, table).on_conflict_do_nothing()


@cache
def build_upsert(dialect: str, table: Table, keys: tuple[str, ...]) -> Any:
    """The `upsert` of a dialect (`sqlite`, `postgresql`)."""
    statement = _insert(dialect, table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)


def _insert(dialect: str, table: Table) -> Any:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
