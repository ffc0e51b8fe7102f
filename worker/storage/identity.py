"""The ledger's own id: what tells two ledgers apart that share a broker."""

from __future__ import annotations

from sqlalchemy import Connection, select

from worker.storage.tables import identity


def fetch_identity(connection: Connection) -> str:
    """The id that this ledger's migration made up; the same from wherever it is reached."""
    return str(connection.execute(select(identity.c.id).order_by(identity.c.id).limit(1)).scalar_one())
