"""The Core tables behind the SQLModel rows, and the few phrases that every statement shares."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import SQLModel

from schemas.rows import (
    AttemptRow,
    BatchRow,
    FailureBodyRow,
    JobRow,
    RequestRow,
    ResultRow,
    UsageRow,
    WorkerRow,
)


def _table(row: type[SQLModel]) -> Table:
    table = row.__table__  # type: ignore[attr-defined]
    assert isinstance(table, Table)
    return table


jobs = _table(JobRow)
requests = _table(RequestRow)
attempts = _table(AttemptRow)
results = _table(ResultRow)
failure_bodies = _table(FailureBodyRow)
usage = _table(UsageRow)
batches = _table(BatchRow)
workers = _table(WorkerRow)

AnyRow = Row[*tuple[Any, ...]]
MAX_ROWS = 500  # rows locked by one multi-row write


def is_ready() -> ColumnElement[bool]:
    """Queued and not handed to the broker yet."""
    return (jobs.c.state == "queued") & jobs.c.published_at_ms.is_(None)


def is_published() -> ColumnElement[bool]:
    """Queued and handed to the broker."""
    return (jobs.c.state == "queued") & jobs.c.published_at_ms.is_not(None)


def insert_or_ignore(connection: Connection, table: Table) -> Any:
    """An INSERT that leaves a row alone which is there already."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def upsert(connection: Connection, table: Table, *keys: str) -> Any:
    """An INSERT that overwrites the row with the same `keys`."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    changed = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    return statement.on_conflict_do_update(index_elements=list(keys), set_=changed)
