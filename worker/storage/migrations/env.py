"""Alembic's environment. It gets an open connection, and never reads an address itself."""

from alembic import context
from sqlmodel import SQLModel

import schemas.rows  # noqa: F401  (fills SQLModel.metadata)

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=False,  # the caller has a transaction around all migrations
)
context.run_migrations()
