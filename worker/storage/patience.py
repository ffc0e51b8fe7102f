"""A PostgreSQL connection that does not wait for ever.

The server's own timeouts and TCP's tell of a server that works, or is gone. One that is there and stands still (its
disk hangs, its machine is suspended behind a proxy) would hold whoever asked it until somebody cut the connection.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout
from sqlalchemy import Engine, event

T = TypeVar("T")


class PatientConnection(psycopg.Connection[Any]):
    """psycopg's connection; whatever it waits for comes `within_s`, or the connection is closed."""

    within_s = 35.0

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """psycopg's. Raises psycopg.OperationalError; what was asked may or may not have been done."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.within_s)
        except _WaitTimeout:
            self.pgconn.finish()  # half way through an answer: it cannot be used again
            raise psycopg.OperationalError(f"no answer for {self.within_s:g} s") from None


def limit_waits(engine: Engine, *, within_s: float) -> None:
    """Has every new connection of the engine wait for each answer so long and no longer."""

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        connection = PatientConnection.connect(*args, **kwargs)
        connection.within_s = within_s
        return connection
