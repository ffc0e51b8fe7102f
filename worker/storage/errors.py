"""Errors of storage, and how the drivers' errors are classified."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker.errors import Unreachable

# What a statement may raise for a value that no row can hold.
UNSTORABLE = (SQLAlchemyError, ValueError, TypeError, ArithmeticError)
# SQLSTATE codes after which a transaction can be retried: deadlock, serialization, lock timeout, statement timeout.
_CONFLICTS = frozenset({"40P01", "40001", "55P03", "57014"})


class DatabaseAway(Unreachable):
    """The ledger cannot be reached or written just now. The transaction may or may not have been committed."""


class NotMigrated(Unreachable):
    """The ledger's tables are missing, or are of another version."""


class WriterStopped(Exception):
    """The writer has ended; nothing more is claimed. `token`: of the claims that it may have committed and not told."""

    def __init__(self, token: str = "") -> None:
        super().__init__()
        self.token = token


class RunsAlone(Exception):
    """The job was lost with its worker too often to be claimed beside others."""


def is_conflict(exc: BaseException) -> bool:
    """Whether the transaction was in conflict with another one, and can be run again."""
    state = getattr(getattr(exc, "orig", None), "sqlstate", None)
    return isinstance(exc, DBAPIError) and state in _CONFLICTS


def is_away(exc: BaseException) -> bool:
    """Whether the database is gone, locked, full or read-only. False: the error is about these rows."""
    if isinstance(exc, PoolTimeout):
        return True
    if not isinstance(exc, DBAPIError):
        return False
    state = getattr(exc.orig, "sqlstate", None) or ""
    if state[:2] == "54":  # a limit that a row exceeds; the driver reports it as an operational error
        return False
    if exc.connection_invalidated or isinstance(exc, (OperationalError, InterfaceError)):
        return True
    return state[:2] in ("08", "53", "57", "25")  # connection, resources, operator, read-only


def is_disk_full(exc: BaseException) -> bool:
    """Whether the database's disk has no room left."""
    orig = getattr(exc, "orig", None)
    if _sqlite_code(exc) == sqlite3.SQLITE_FULL:
        return True
    return getattr(orig, "sqlstate", None) == "53100"


def is_damaged(exc: BaseException | None) -> bool:
    """Whether the driver reports that the file is damaged, or is no database."""
    return exc is not None and _sqlite_code(exc) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def why_unusable(exc: BaseException) -> str | None:
    """The end of a sentence, if the database stays unusable until a person acts; else None."""
    code = _sqlite_code(exc)
    if code == sqlite3.SQLITE_NOTADB:
        return "its file is no SQLite database: name another one"
    if code == sqlite3.SQLITE_CORRUPT:
        return "its file is damaged: restore it from a backup"
    if code == sqlite3.SQLITE_READONLY:
        return "its file, or the folder that it is in, is write-protected: give this user the right to write there"
    if code == sqlite3.SQLITE_CANTOPEN:
        return "its file cannot be opened: does its folder exist, and may this user write there?"
    if getattr(getattr(exc, "orig", None), "sqlstate", None) == "42501":
        return f"its user may not do what antrean does ({describe(exc)}): grant it the rights"
    return None


def _sqlite_code(exc: BaseException) -> int:
    return int(getattr(getattr(exc, "orig", None), "sqlite_errorcode", 0)) & 0xFF


def is_missing_table(exc: BaseException) -> bool:
    """Whether the ledger has not been migrated yet."""
    if not isinstance(exc, DBAPIError):
        return False
    return getattr(exc.orig, "sqlstate", None) == "42P01" or "no such table" in str(exc.orig)


def describe(exc: BaseException) -> str:
    """The driver's message on one line, without the statement and its values."""
    orig = getattr(exc, "orig", None) or exc
    return " ".join(str(orig).split())[:300]
