"""The ledger's identity: its own id, which distinguishes ledgers that share a broker, and its location."""

from __future__ import annotations

import os

from sqlalchemy import URL, Connection, select

from worker.storage.tables import identity


def fetch_identity(connection: Connection) -> str:
    """The ledger's random id. The migration made it; it is the same for every client."""
    return str(connection.execute(select(identity.c.id).order_by(identity.c.id).limit(1)).scalar_one())


def fetch_place(connection: Connection) -> str:
    """The ledger's location for people: the file as SQLite names it, or the server's address without password."""
    if connection.dialect.name == "sqlite":
        # SQLite is asked, as the settings may name the file by another path.
        asked = "SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'"  # a path is bytes
        return (
            os.fsdecode(connection.exec_driver_sql(asked).scalar_one())
            .encode("utf-8", "backslashreplace")
            .decode()
        )
    url = connection.engine.url
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
    return plain.render_as_string()
