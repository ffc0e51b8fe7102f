"""Statements of the hot path: written out once for each dialect, run without SQLAlchemy's work for each call.

They are Core statements like all others; what they save is building, looking up and rendering them for every group
of jobs, and, on PostgreSQL, parsing a text that differs with the number of ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import orjson
from sqlalchemy import ColumnElement, Connection, String, any_, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DBAPIError


@dataclass(frozen=True, slots=True)
class _Written:
    sql: str
    defaults: Mapping[str, Any]
    order: tuple[str, ...] | None  # names of the positions; None where the driver takes names


class Prepared:
    """One statement. `build` makes it for a dialect (`sqlite`, `postgresql`).

    Values go to the driver as they are: no type of SQLAlchemy's converts them, nor what comes back.
    """

    def __init__(self, build: Callable[[str], Any]) -> None:
        self._build = build
        self._written: dict[str, _Written] = {}

    def run(self, connection: Connection, values: Mapping[str, Any]) -> CursorResult[Any]:
        """The result of one execution."""
        written = self._write(connection)
        return connection.exec_driver_sql(written.sql, _arrange(written, values))

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Executes once for each of `rows`, which are not empty."""
        written = self._write(connection)
        connection.exec_driver_sql(written.sql, [_arrange(written, values) for values in rows])

    def _write(self, connection: Connection) -> _Written:
        dialect = connection.dialect
        written = self._written.get(dialect.name)
        if written is None:
            compiled = self._build(dialect.name).compile(dialect=dialect)
            positions = compiled.positiontup
            written = self._written[dialect.name] = _Written(
                str(compiled), compiled.params, None if positions is None else tuple(positions)
            )
        return written


@contextmanager
def together(connection: Connection) -> Iterator[None]:
    """On PostgreSQL, what is run inside leaves in one piece and is answered in one piece.

    For statements that return no rows. Raises as an execution does.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    import psycopg  # local: ten megabytes that a worker on SQLite does without

    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    try:
        with driver.pipeline():
            yield
    except psycopg.Error as exc:
        # What an execution inside would have raised, had it waited for its answer.
        is_gone = connection.dialect.is_disconnect(cast(Any, exc), connection.connection, None)
        if is_gone:
            connection.invalidate(exc)
        raise DBAPIError.instance(
            None, None, exc, psycopg.Error, hide_parameters=True, connection_invalidated=is_gone
        ) from exc


def _arrange(written: _Written, values: Mapping[str, Any]) -> Any:
    if written.order is None:
        return {**written.defaults, **values}
    defaults = written.defaults
    return tuple(values[name] if name in values else defaults[name] for name in written.order)


def is_among(dialect: str, column: ColumnElement[str]) -> ColumnElement[bool]:
    """The column is one of the bound `ids`, in a text that is the same for any number of them."""
    if dialect == "postgresql":
        return column == any_(bindparam("ids", type_=ARRAY(String)))
    each = func.json_each(bindparam("ids")).table_valued("value")
    return column.in_(select(literal_column("value", String)).select_from(each))


def pack_ids(connection: Connection, ids: Sequence[str]) -> Any:
    """What to bind as `ids`, in ascending order."""
    ordered = sorted(ids)
    return ordered if connection.dialect.name == "postgresql" else orjson.dumps(ordered).decode()
