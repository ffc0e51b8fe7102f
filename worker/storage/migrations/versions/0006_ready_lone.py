"""An index of lone jobs that are to be published, of any batch."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
_READY_LONE = "state = 'queued' AND published_at_ms IS NULL AND NOT is_bulk"


def upgrade() -> None:
    # Partial: a lone job is marked as published when it is written. It is in this index only if publishing failed.
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
