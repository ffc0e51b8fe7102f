"""The engine for PostgreSQL: connections that do not wait for ever, directly or through a pooler.

The server's timeouts and TCP's do not help if the server hangs, as its disk hangs or its machine is suspended behind a
proxy: a client would wait until the connection is cut. So each connection has its own limit.
Settings in the address or in PGOPTIONS are not changed (docs/adr/0023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event

from worker.settings.database import PostgresqlAddress

T = TypeVar("T")
# Defaults for what the address does not set. `fallback_…`: PGAPPNAME takes precedence, too.
_DEFAULTS: Mapping[str, Any] = {
    "connect_timeout": 5,
    "client_encoding": "utf8",  # it overrides PGCLIENTENCODING: a prompt may hold any character
    "fallback_application_name": "antrean",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
# With these limits, a half-open connection or a forgotten lock ends in an error, which is retried.
_STATEMENT_MS = 30_000
_LOCK_MS = 10_000
_LOCK_OUT_MS = 3_000
# Sets only what the address or PGOPTIONS (source `client`) does not set.
_SET_DEFAULTS = """
SELECT set_config(wanted.name, wanted.value, %s)
FROM unnest(%s::text[], %s::text[]) AS wanted(name, value) JOIN pg_settings USING (name)
WHERE pg_settings.source <> 'client'
"""
# Messages for operators of a pooler.
_NO_OPTIONS = (
    "the pooler in between takes no `options` (unsupported startup parameter): leave them out of the address and of "
    "PGOPTIONS, or let PgBouncer have ignore_startup_parameters = options"
)
_NO_SESSION = (
    "though it let us in: has a pooler in session mode fewer connections (pool_size) than its clients hold?"
)


class PatientConnection(psycopg.Connection[Any]):
    """psycopg's connection with a limit: it is closed if an answer does not come within `within_s` seconds."""

    within_s: float | None = 35.0  # None: no limit
    is_pooled = False  # a pooler is in between: another client may use the same session of the server

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's. At the limit it raises psycopg.OperationalError; the statement may or may not have been run."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.within_s)
        except _WaitTimeout:
            self.pgconn.finish()  # it may be in the middle of an answer, and cannot be used again
            raise psycopg.OperationalError(f"no answer for {self.within_s:g} s") from None


def create_postgresql_engine(
    address: PostgresqlAddress, *, pool_size: int, idle_ms: int, within_s: float
) -> Engine:
    """An engine whose connections wait `within_s` for each answer, and whose transactions may be idle for `idle_ms`.

    It works through a pooler (PgBouncer), in session mode and in transaction mode.
    """
    limits = {
        "statement_timeout": _STATEMENT_MS,
        "lock_timeout": _LOCK_MS,
        "idle_in_transaction_session_timeout": idle_ms,
    }
    engine = create_engine(
        engine_url(address),
        pool_size=pool_size,
        max_overflow=8,
        pool_timeout=30,
        hide_parameters=True,  # an error's text must not quote a prompt or an answer (invariant 10)
        connect_args={name: value for name, value in _DEFAULTS.items() if name not in address.parameters},
    )

    @event.listens_for(engine, "do_connect")
    def _on_connect(_dialect: Any, _record: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _connect(args, kwargs, limits, within_s=within_s)

    begin = "; ".join(["BEGIN", *(f"SET LOCAL {name} = {value}" for name, value in limits.items())])

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        if getattr(connection.connection.driver_connection, "is_pooled", False):
            connection.exec_driver_sql(begin)

    return engine


@contextmanager
def without_time_limit(connection: Connection) -> Iterator[None]:
    """While inside, statements of this transaction have no time limit.

    The limit for waits for a lock stays: while such a statement waits, others wait behind it.
    """
    driver: Any = connection.connection.driver_connection
    within_s = driver.within_s
    driver.within_s = None
    try:
        connection.exec_driver_sql(
            _SET_DEFAULTS, tuple(_as_defaults({"statement_timeout": 0}, is_local=True))
        )
        yield
    finally:
        driver.within_s = within_s


@contextmanager
def without_lock_limit(connection: Connection) -> Iterator[None]:
    """While inside, this transaction waits for locks without a limit. For a lock that blocks no others."""
    _limit_locks(connection, 0)
    yield
    _limit_locks(connection, _LOCK_MS)


def lock_out_writers(connection: Connection, table: Table) -> None:
    """Waits for all transactions that write or lock rows of the table, and keeps others from it until this one ends.

    Each statement that waits for this reads what this transaction wrote. Reading goes on.
    """
    # All writers wait behind a lock that waits. A vacuum in the background gives way after a second.
    _limit_locks(connection, _LOCK_OUT_MS)
    connection.exec_driver_sql(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE")
    _limit_locks(connection, _LOCK_MS)


def _limit_locks(connection: Connection, limit_ms: int) -> None:
    """Limits the waits for locks of this transaction; 0: no limit."""
    connection.exec_driver_sql(_SET_DEFAULTS, tuple(_as_defaults({"lock_timeout": limit_ms}, is_local=True)))


def _as_defaults(limits: Mapping[str, int], *, is_local: bool) -> list[Any]:
    """The arguments of _SET_DEFAULTS. With `is_local` the settings end with the transaction."""
    return [is_local, list(limits), [str(value) for value in limits.values()]]


def engine_url(address: PostgresqlAddress) -> URL:
    """SQLAlchemy's URL for this address and psycopg."""
    return URL.create(
        "postgresql+psycopg",
        username=address.user,
        password=address.password,
        host=address.host,
        port=address.port,
        database=address.database,
        query=address.parameters,
    )


def _connect(args: Any, kwargs: Any, limits: Mapping[str, int], *, within_s: float) -> PatientConnection:
    """A connection. The limits are set for the session; with a pooler, each transaction sets them instead."""
    try:
        connection = PatientConnection.connect(*args, **kwargs)
    except psycopg.OperationalError as exc:
        if "unsupported startup parameter" in str(exc):
            raise psycopg.OperationalError(_NO_OPTIONS) from exc
        raise
    connection.within_s = within_s
    try:
        connection.autocommit = True
        found = connection.execute("SELECT pg_backend_pid()").fetchone()
        # Through a pooler, the pid that was given at the connection is not that of the server process that answers.
        connection.is_pooled = found is None or found[0] != connection.pgconn.backend_pid
        if connection.is_pooled:
            # Otherwise statements would be prepared in another client's session.
            connection.prepare_threshold = None
        else:
            connection.execute(_SET_DEFAULTS, _as_defaults(limits, is_local=False))
            connection.autocommit = False
    except psycopg.Error as exc:
        is_silent = connection.closed and isinstance(exc, psycopg.OperationalError)
        connection.close()
        if is_silent:
            raise psycopg.OperationalError(f"{exc}, {_NO_SESSION}") from exc
        raise
    return connection
