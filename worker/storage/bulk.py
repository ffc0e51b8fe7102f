"""Inserts many rows with one statement. Values are passed by column, which is faster than a mapping for each row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import Connection, Dialect, Table

_Place = Literal["each", "shared", "NULL", "TRUE", "FALSE"]


def insert_columns(connection: Connection, table: Table, columns: Mapping[str, list[Any]]) -> int:
    """Inserts rows and returns how many are new. Rows that exist already are not changed.

    `columns`: the values of each column, all lists of the same length, at least 1.
    """
    places = tuple([_place(values) for values in columns.values()])
    statement = _build_insert(connection.dialect, table, tuple(columns), places)
    parameters: Any
    if connection.dialect.name == "postgresql":
        parameters = tuple(
            [
                values if place == "each" else values[0]
                for place, values in zip(places, columns.values(), strict=True)
                if place in ("each", "shared")
            ]
        )
    else:
        bound = [
            values
            for place, values in zip(places, columns.values(), strict=True)
            if place in ("each", "shared")
        ]
        parameters = list(zip(*bound, strict=True))
    return connection.exec_driver_sql(statement, parameters).rowcount


def _place(values: list[Any]) -> _Place:
    first = values[0]
    if values.count(first) < len(values):
        return "each"
    # These are written into the statement: SQLite's driver needs six times as long to bind them as for a number.
    if first is None:
        return "NULL"
    if isinstance(first, bool):
        return "TRUE" if first else "FALSE"
    return "shared"


@lru_cache(maxsize=256)
def _build_insert(dialect: Dialect, table: Table, names: tuple[str, ...], places: tuple[_Place, ...]) -> str:
    values: list[str] = []
    for name, place in zip(names, places, strict=True):
        if dialect.name != "postgresql":
            values.append("?" if place in ("each", "shared") else place)
            continue
        type_ = table.c[name].type.compile(dialect)
        if place == "each":  # %b, binary: psycopg escapes an array in text form item by item
            values.append(f"unnest(%b::{type_}[])")
        else:
            values.append(f"{'%s' if place == 'shared' else place}::{type_}")
    source = (
        f"SELECT {', '.join(values)}" if dialect.name == "postgresql" else f"VALUES ({', '.join(values)})"
    )
    return f"INSERT INTO {table.name} ({', '.join(names)}) {source} ON CONFLICT DO NOTHING"
