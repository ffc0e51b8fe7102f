"""Sums of costs, however absurd the costs are: those of SQLite end in an error beyond 64 bits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, func

from worker.policy.cost import NANO_PER_USD


def sum_nano(column: ColumnElement[Any]) -> tuple[ColumnElement[int], ColumnElement[int]]:
    """The sums of whole dollars and of the rest of a column of nanodollars; 0 over no rows. See `join_nano`."""
    dollars, rest = column // NANO_PER_USD, column % NANO_PER_USD
    return func.coalesce(func.sum(dollars), 0), func.coalesce(func.sum(rest), 0)


def join_nano(dollars: Any, rest: Any) -> int:
    """The nanodollars of both sums. It may have more than 64 bits."""
    return int(dollars) * NANO_PER_USD + int(rest)
