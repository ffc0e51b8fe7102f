"""A table of wants: several batches may want a job, each with its own custom_id. Batches of ended runs are held."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "wants",
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("custom_id", sa.String(), nullable=True),
        sa.Column("is_given_up", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "position", "job_id"),
    )
    op.create_index("ix_wants_job", "wants", ["job_id"], unique=False)
    # A batch is read in the order of its input. The order of ids differs from it once a folder has got new files.
    op.drop_index("ix_jobs_batch_order", table_name="jobs")
    op.create_index("ix_jobs_batch_order", "jobs", ["batch_id", "position", "id"], unique=False)
    # From now on the batch of a run is held while no run of it lives, also if it has no open jobs.
    op.execute(
        sa.text(
            "UPDATE batches SET held_at_ms = :now_ms WHERE kind = 'run' AND held_at_ms IS NULL AND NOT EXISTS ("
            "SELECT 1 FROM jobs WHERE jobs.batch_id = batches.id AND state IN ('queued', 'waiting', 'running'))"
        ).bindparams(now_ms=time.time_ns() // 1_000_000)
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_batch_order", table_name="jobs")
    op.create_index("ix_jobs_batch_order", "jobs", ["batch_id", "id"], unique=False)
    op.drop_table("wants")
