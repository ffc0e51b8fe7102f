"""Which ledger it is: its own id, which tells two apart that share a broker, and the place where it is kept."""

from __future__ import annotations

import os

from sqlalchemy import URL, Connection, select

from worker.storage.tables import identity


def fetch_identity(connection: Connection) -> str:
    """The id that this ledger's migration made up; the same from wherever it is reached."""
    return str(connection.execute(select(identity.c.id).order_by(identity.c.id).limit(1)).scalar_one())


def fetch_place(connection: Connection) -> str:
    """The file as SQLite itself names it, or the server's address without its password, for people."""
    if connection.dialect.name == "sqlite":
        # Asked, not put together from the settings: this is what was opened.
        asked = "SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'"  # a path is bytes
        return (
            os.fsdecode(connection.exec_driver_sql(asked).scalar_one())
            .encode("utf-8", "backslashreplace")
            .decode()
        )
    url = connection.engine.url
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
    return plain.render_as_string()
