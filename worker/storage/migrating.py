"""Migrates the ledger's schema to this version, in one transaction, by one process at a time."""

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
# Those of SCRIPTS, oldest first.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011")
HEAD = REVISIONS[-1]  # the revision that this version of antrean needs
_ADVISORY_LOCK = 0x616E7472  # "antr": an arbitrary number that no other program is likely to use


@dataclass(frozen=True, slots=True)
class Migrated:
    """The schema's revision before (None: an empty database) and after."""

    before: str | None
    after: str


def migrate(ledger: Ledger) -> Migrated:
    """Applies the missing migrations; changes nothing in a ledger that is up to date.

    Raises DatabaseAway; NotMigrated if a newer version of antrean has migrated the ledger.
    """
    with ledger.write() as connection, _one_at_a_time(connection) if ledger.is_postgresql else nullcontext():
        before = _revision(connection)
        if _is_newer(before):
            raise _of_a_newer(before)
        if before != HEAD:
            _upgrade(connection)
        return Migrated(before, HEAD)


@contextmanager
def _one_at_a_time(connection: Connection) -> Iterator[None]:
    """While inside, no other process migrates: it waits until this one is done, and then finds nothing to do.

    Statements inside have no time limit: the usual one would end a migration of a large ledger.
    """
    # Local: psycopg takes eight megabytes, which a worker on SQLite does not need.
    from worker.storage.postgresql import without_lock_limit, without_time_limit

    with without_time_limit(connection):
        with without_lock_limit(connection):
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        yield


def prepare_ledger(settings: Settings) -> Ledger:
    """The ledger. If it is the home's own SQLite file, it is migrated. Raises NotMigrated or DatabaseAway."""
    ledger = open_ledger(settings)
    if settings.database_url is None:
        migrate(ledger)
    elif (newer := fetch_newer_revision(ledger)) is not None:
        raise _of_a_newer(newer)
    elif not is_current(ledger):
        raise NotMigrated("the database is not at this version's schema: run `antrean migrate` first")
    return ledger


def is_current(ledger: Ledger) -> bool:
    """Whether the schema is at the revision that this version needs."""
    with ledger.read() as connection:
        return _revision(connection) == HEAD


def fetch_newer_revision(ledger: Ledger) -> str | None:
    """The schema's revision if this version does not know it, else None."""
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
    # Local: Alembic takes eight megabytes, which a worker with a current schema does not need.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
