"""Access to the ledger: one engine, two kinds of transaction, and the drivers' errors mapped to antrean's.

SQLite runs in WAL mode. `synchronous=FULL` (the default) syncs the log at every commit: committed data survive a power
cut. `NORMAL` syncs at checkpoints only: a crash of the process loses nothing, but a power cut may undo the last
commits, and their calls would be made, and paid for, again.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from worker.errors import SettingsError
from worker.files.disk import describe_full_disk
from worker.files.private import close_file, close_home, make_private_folder, open_private
from worker.settings import Settings
from worker.storage.errors import (
    DatabaseAway,
    NotMigrated,
    describe,
    is_away,
    is_conflict,
    is_disk_full,
    is_missing_table,
    why_unusable,
)

T = TypeVar("T")
# An open transaction, the first argument of storage's functions. Other rooms only pass it on.
Transaction: TypeAlias = Connection
_CONFLICT_TRIES = 10
SQLITE_BUSY_MS = 15_000
_IS_OURS = "antrean_is_ours"
_IS_LEDGER_OR_EMPTY = """
SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'alembic_version')
    OR NOT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table')
"""
_making = threading.Lock()  # no thread connects to a new file before the thread that makes it has closed it
_ANSWER_WITHIN_S = 35.0  # longer than the server's own timeouts: it is reached only if the server hangs


class Ledger:
    """Transactions on one database. Thread-safe. No transaction may be open during an HTTP call (invariant 6)."""

    def __init__(self, engine: Engine, *, rng: random.Random | None = None) -> None:
        self.engine = engine
        self.is_postgresql = engine.dialect.name == "postgresql"
        self._rng = rng or random.Random()
        self._writer = engine.execution_options(antrean_begin="IMMEDIATE")

    @property
    def folder(self) -> Path | None:
        """The folder of the database's file; None for a database server."""
        file = None if self.is_postgresql else self.engine.url.database
        return Path(file).parent if file else None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only transaction, which sees one consistent state. Raises DatabaseAway or NotMigrated."""
        with self._mapped_errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits at the end. It raises on a conflict; `run` retries instead."""
        with self._mapped_errors(), self._writer.begin() as connection:
            yield connection

    def run(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in a transaction, commits, and returns its result. After a conflict, `work` is run again."""
        for attempt in range(1, _CONFLICT_TRIES + 1):
            try:
                with self._writer.begin() as connection:
                    return work(connection)
            except SQLAlchemyError as exc:
                if is_conflict(exc) and attempt < _CONFLICT_TRIES:
                    # Random, so that two transactions in conflict do not retry at the same time again.
                    time.sleep(self._rng.uniform(0, 0.02 * attempt))
                    continue
                self._raise_mapped(exc)
        raise AssertionError("unreachable")

    def dispose(self) -> None:
        """Closes the pooled connections."""
        self.engine.dispose()

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as exc:
            self._raise_mapped(exc)

    def _raise_mapped(self, exc: SQLAlchemyError) -> None:
        if is_missing_table(exc):
            raise NotMigrated(
                "the database has no tables of antrean yet: run `antrean migrate` first"
            ) from exc
        if is_disk_full(exc) or (self.folder and is_away(exc) and describe_full_disk([self.folder])):
            # If SQLite cannot make a file beside its own, it reports an I/O error.
            where = f"the disk of {self.folder}" if self.folder else "the database's disk"
            raise DatabaseAway(f"{where} is full: make room on it. What is written down is kept") from exc
        if (why := why_unusable(exc)) is not None:
            name = self.engine.url.database if self.folder else "the database"
            raise DatabaseAway(f"{name} cannot be used: {why}") from exc  # a worker waits until it can
        if is_away(exc) or is_conflict(exc):
            raise DatabaseAway(f"the database does not answer: {describe(exc)}") from exc
        raise exc


def open_ledger(
    settings: Settings, *, pool_size: int = 8, answer_within_s: float = _ANSWER_WITHIN_S
) -> Ledger:
    """The ledger of these settings. Connects at first use. Makes the folder of a SQLite file.

    A PostgreSQL server that has not answered a statement within `answer_within_s` counts as away. SQLite has its own
    timeout.
    """
    _close_home(settings.home)
    address = settings.ledger_address
    if isinstance(address, Path):
        path = address
        _make_folder(path.parent)
        # The path is not parsed as an address, in which `%41` would mean another file.
        url = URL.create("sqlite", database=str(path))
        engine = create_engine(
            url, pool_size=pool_size, max_overflow=8, pool_timeout=30, hide_parameters=True
        )
        _make_private(engine, path)
        _prepare_sqlite(engine, synchronous=settings.sqlite_synchronous)
        _close_to_others(engine, path)
        return Ledger(engine)
    # The server ends a transaction that is idle for a lease: its locks would block other workers, and a rescue.
    idle_ms = round(1000 * min(settings.lease_s, 30.0))
    # Local: psycopg takes eight megabytes, which a worker on SQLite does not need.
    from worker.storage.postgresql import create_postgresql_engine

    engine = create_postgresql_engine(address, pool_size=pool_size, idle_ms=idle_ms, within_s=answer_within_s)
    return Ledger(engine)


def _close_home(home: Path) -> None:
    try:
        close_home(home)
    except OSError as exc:
        raise SettingsError(
            [
                f"{exc.filename or home} cannot be used ({exc.strerror}): choose another folder with ANTREAN_HOME"
            ]
        ) from exc


def _make_folder(folder: Path) -> None:
    try:
        make_private_folder(folder)
    except OSError as exc:
        raise SettingsError(
            [f"{folder} cannot be written ({exc.strerror}): choose another folder with ANTREAN_HOME"]
        ) from exc


def _make_private(engine: Engine, path: Path) -> None:
    """Makes a missing database file private to this user, whatever the umask."""

    @event.listens_for(engine, "do_connect")
    def _on_do_connect(*_: object) -> None:
        real = Path(os.path.realpath(path))  # SQLite follows links, and makes its files beside the target
        with _making:
            if not real.exists():
                _make_file(real)


def _close_to_others(engine: Engine, path: Path) -> None:
    """Makes the database and SQLite's files beside it private to this user.

    Must be the last listener: before it, the file is checked to be a ledger. A mistyped name may be any file.
    """

    @event.listens_for(engine, "connect")
    def _on_connect(_connection: object, entry: ConnectionPoolEntry) -> None:
        if not entry.info[_IS_OURS]:
            return
        real = Path(os.path.realpath(path))
        try:
            # SQLite gives new files the mode of the database. Older files may have been left open to others.
            for suffix in ("", "-wal", "-shm", "-journal"):
                close_file(real.with_name(real.name + suffix))
        except OSError as exc:
            raise SettingsError(
                [f"{exc.filename or real} cannot be used as a ledger ({exc.strerror}): choose another one"]
            ) from exc


def _make_file(path: Path) -> None:
    # Only if it is missing: closing an existing file would release the locks that SQLite has on it in this process.
    with suppress(OSError):  # another process has made it, or SQLite will report the error
        os.close(open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))


def _use_wal(connection: sqlite3.Connection) -> bool:
    """Switches a ledger, or an empty file, to WAL mode. False: another program's database, which is not changed."""
    # If two processes open a new file at the same time, the second gets "locked" at once, whatever its timeout.
    end_s = time.monotonic() + SQLITE_BUSY_MS / 1000
    while True:
        try:
            if not all(connection.execute(_IS_LEDGER_OR_EMPTY).fetchone()):
                return False
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end_s:
                raise
            time.sleep(0.01)
        else:
            return True


def _prepare_sqlite(engine: Engine, *, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the begin event below sends BEGIN
        connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
        entry.info[_IS_OURS] = _use_wal(connection)
        connection.execute(f"PRAGMA synchronous = {synchronous.upper()}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cache_size = -4000")

    @event.listens_for(engine, "handle_error")
    def _on_error(context: ExceptionContext) -> None:
        # A connection that was opened while its file was read-only stays read-only: the pool must drop it.
        code = getattr(context.original_exception, "sqlite_errorcode", 0)
        if code & 0xFF == sqlite3.SQLITE_READONLY:
            context.is_disconnect = True

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # Writers begin with IMMEDIATE: a deferred transaction that turns from reading to writing may fail at once.
        kind: Any = connection.get_execution_options().get("antrean_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {kind}")
