"""Migrations: the ledger's schema brought to this version, in one transaction, by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from worker.settings import Settings
from worker.storage.engine import Ledger, open_ledger
from worker.storage.errors import NotMigrated

SCRIPTS = Path(__file__).parent / "migrations"
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")  # those of SCRIPTS, oldest first
HEAD = REVISIONS[-1]  # which this version of antrean works with
_ADVISORY_LOCK = 0x616E7472  # "antr": any number that no one else uses


@dataclass(frozen=True, slots=True)
class Migrated:
    """The schema's revision before (None: an empty database) and after."""

    before: str | None
    after: str


def migrate(ledger: Ledger) -> Migrated:
    """Applies what is missing; does nothing to a ledger that is up to date. Raises DatabaseAway or NotMigrated.

    NotMigrated: a newer antrean was here, and this one can do nothing about it.
    """
    with ledger.write() as connection, _alone(connection) if ledger.is_postgresql else nullcontext():
        before = _revision(connection)
        if _is_newer(before):
            raise _of_a_newer(before)
        if before != HEAD:
            _upgrade(connection)
        return Migrated(before, HEAD)


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Two deployments at once: the second waits here, as long as the first works, and then finds nothing to do.

    A migration takes the time that it needs; what any other statement is given would end it on a large ledger.
    """
    # Local: a worker on SQLite does without psycopg's eight megabytes.
    from worker.storage.postgresql import unhurried, waiting_for_locks

    with unhurried(connection):
        with waiting_for_locks(connection):
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        yield


def prepare_ledger(settings: Settings) -> Ledger:
    """The ledger, migrated where it is our own SQLite file. Raises NotMigrated or DatabaseAway."""
    ledger = open_ledger(settings)
    if settings.database_url is None:
        migrate(ledger)
    elif (newer := fetch_newer_revision(ledger)) is not None:
        raise _of_a_newer(newer)
    elif not is_current(ledger):
        raise NotMigrated("the database is not at this version's schema: run `antrean migrate` first")
    return ledger


def is_current(ledger: Ledger) -> bool:
    """Whether the schema is at this version's revision."""
    with ledger.read() as connection:
        return _revision(connection) == HEAD


def fetch_newer_revision(ledger: Ledger) -> str | None:
    """The schema's revision where this version does not know it, else None."""
    with ledger.read() as connection:
        found = _revision(connection)
    return found if _is_newer(found) else None


def _of_a_newer(revision: str | None) -> NotMigrated:
    return NotMigrated(f"the database is at revision {revision}, of a newer antrean: upgrade this one")


def _is_newer(revision: str | None) -> bool:
    return revision is not None and revision not in REVISIONS


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _upgrade(connection: Connection) -> None:
    # Local: a worker whose schema is up to date does without its eight megabytes.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
