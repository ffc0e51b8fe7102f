"""Lone jobs that are to be published, found among any number of others, whatever batch they name."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
_READY_LONE = "state = 'queued' AND published_at_ms IS NULL AND NOT is_bulk"


def upgrade() -> None:
    # Partial: a lone job is published with the commit that writes it down, so it is in here when that went wrong.
    op.create_index(
        "ix_jobs_ready_lone",
        "jobs",
        ["endpoint", "priority", "id"],
        unique=False,
        sqlite_where=sa.text(_READY_LONE),
        postgresql_where=sa.text(_READY_LONE),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_ready_lone", table_name="jobs")
