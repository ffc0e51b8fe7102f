"""Indexes for each batch's share of the window and for waits by a clock that is ahead; and the ledger's own id."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Partial indexes: a job that is written, called and done without a wait is in neither.
    op.create_index(
        "ix_jobs_due_batch",
        "jobs",
        ["endpoint", "batch_id", "not_before_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting'"),
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "ix_jobs_retries",
        "jobs",
        ["endpoint", "not_before_ms"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting' AND claims > 0"),
        postgresql_where=sa.text("state = 'waiting' AND claims > 0"),
    )
    identity = op.create_table(
        "identity",
        sa.Column("id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(identity, [{"id": uuid.uuid4().hex}])


def downgrade() -> None:
    op.drop_table("identity")
    op.drop_index("ix_jobs_retries", table_name="jobs")
    op.drop_index("ix_jobs_due_batch", table_name="jobs")
