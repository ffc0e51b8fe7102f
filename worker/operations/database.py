"""The database behind a ledger: whether it can be used, and bringing it to this version's schema."""

from __future__ import annotations

from worker.settings import Settings
from worker.storage.engine import Ledger, open_ledger
from worker.storage.errors import NotMigrated
from worker.storage.migrating import Migrated, is_current, migrate


def check_database(settings: Settings) -> Ledger:
    """The ledger, which answers and has this version's schema.

    The ledger of a home is brought up to date; a database with a server stays as it is, and NotMigrated is raised
    where it is not. Raises DatabaseAway.
    """
    ledger = open_ledger(settings)
    if settings.database_url is None:
        migrate(ledger)
    elif not is_current(ledger):
        raise NotMigrated(
            f"{name_database(ledger)} answers, but has not this version's schema: run `antrean migrate`"
        )
    return ledger


def name_database(ledger: Ledger) -> str:
    """`PostgreSQL` or `SQLite`."""
    return "PostgreSQL" if ledger.is_postgresql else "SQLite"


def migrate_database(settings: Settings) -> Migrated:
    """The revision before and after. Safe to repeat, and beside running workers. Raises NotMigrated for a newer one."""
    return migrate(open_ledger(settings))
