"""Statements of the hot path: compiled once for each dialect, and executed without SQLAlchemy's overhead.

They are Core statements. This saves building, looking up and rendering them for every group of jobs; and PostgreSQL
need not parse a new text for each number of ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

import orjson
from sqlalchemy import ColumnElement, Connection, String, any_, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DBAPIError


@dataclass(frozen=True, slots=True)
class _Written:
    sql: str
    arrange: Callable[
        [Mapping[str, Any]], Any
    ]  # the parameters as the driver takes them, from values by name


class Prepared:
    """One statement. `build` makes it for a dialect (`sqlite`, `postgresql`).

    Values go to the driver unchanged, and come back unchanged: no SQLAlchemy type converts them.
    """

    def __init__(self, build: Callable[[str], Any]) -> None:
        self._build = build
        self._written: dict[str, _Written] = {}

    def run(self, connection: Connection, values: Mapping[str, Any]) -> CursorResult[Any]:
        """Executes the statement once, and returns its result."""
        written = self._write(connection)
        return connection.exec_driver_sql(written.sql, written.arrange(values))

    def run_many(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Executes the statement once for each of `rows`, of which there must be at least one."""
        written = self._write(connection)
        connection.exec_driver_sql(written.sql, [written.arrange(values) for values in rows])

    def _write(self, connection: Connection) -> _Written:
        dialect = connection.dialect
        written = self._written.get(dialect.name)
        if written is None:
            compiled = self._build(dialect.name).compile(dialect=dialect)
            written = self._written[dialect.name] = _Written(
                str(compiled), _make_arrange(compiled.params, compiled.positiontup)
            )
        return written


@contextmanager
def together(connection: Connection) -> Iterator[None]:
    """On PostgreSQL, statements inside are sent as a pipeline: together, with one wait for all answers.

    For statements that return no rows. Raises the same errors as an execution.
    """
    if connection.dialect.name != "postgresql":
        yield
        return
    import psycopg  # local: it takes ten megabytes, which a worker on SQLite does not need

    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    try:
        with driver.pipeline():
            yield
    except psycopg.Error as exc:
        # The error that the statement itself would have raised without the pipeline.
        is_gone = connection.dialect.is_disconnect(cast(Any, exc), connection.connection, None)
        if is_gone:
            connection.invalidate(exc)
        raise DBAPIError.instance(
            None, None, exc, psycopg.Error, hide_parameters=True, connection_invalidated=is_gone
        ) from exc


def _make_arrange(
    defaults: Mapping[str, Any], order: Sequence[str] | None
) -> Callable[[Mapping[str, Any]], Any]:
    """`order`: the names of positional parameters; None if the driver takes names."""
    if order is None:
        return lambda values: {**defaults, **values}
    if len(order) < 2:  # with one name `itemgetter` gives no tuple
        return lambda values: tuple(values[name] if name in values else defaults[name] for name in order)
    pick = itemgetter(*order)
    return lambda values: pick({**defaults, **values})


def is_among(dialect: str, column: ColumnElement[str]) -> ColumnElement[bool]:
    """A condition: the column is one of the bound `ids`. Its text is the same for any number of ids."""
    if dialect == "postgresql":
        return column == any_(bindparam("ids", type_=ARRAY(String)))
    each = func.json_each(bindparam("ids")).table_valued("value")
    return column.in_(select(literal_column("value", String)).select_from(each))


def pack_ids(connection: Connection, ids: Sequence[str]) -> Any:
    """The value to bind as `ids`: all of them, ascending."""
    ordered = sorted(ids)
    return ordered if connection.dialect.name == "postgresql" else orjson.dumps(ordered).decode()
