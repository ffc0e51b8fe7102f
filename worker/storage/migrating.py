"""Migrations: the ledger's schema brought to this version, in one transaction, by one process at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from worker.settings import Settings
from worker.storage.engine import Ledger, open_ledger
from worker.storage.errors import NotMigrated

_SCRIPTS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x616E7472  # "antr": any number that no one else uses


@dataclass(frozen=True, slots=True)
class Migrated:
    """The schema's revision before (None: an empty database) and after."""

    before: str | None
    after: str


def migrate(ledger: Ledger) -> Migrated:
    """Applies what is missing; does nothing to a ledger that is up to date. Raises DatabaseAway."""
    with ledger.write() as connection:
        if ledger.is_postgresql:
            # Two deployments at once: the second waits here and then finds nothing to do.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
        before = _revision(connection)
        after = head_revision()
        if before != after:
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return Migrated(before, after)


def prepare_ledger(settings: Settings) -> Ledger:
    """The ledger, migrated where it is our own SQLite file. Raises NotMigrated or DatabaseAway."""
    ledger = open_ledger(settings)
    if settings.database_url is None:
        migrate(ledger)
    elif not is_current(ledger):
        raise NotMigrated("the database is not at this version's schema: run `antrean migrate` first")
    return ledger


def is_current(ledger: Ledger) -> bool:
    """Whether the schema is at this version's revision."""
    with ledger.read() as connection:
        return _revision(connection) == head_revision()


def head_revision() -> str:
    """The revision that this version of antrean works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "there is a first migration"
    return head


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config
