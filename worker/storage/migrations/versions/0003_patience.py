"""The time until which a job at a shut gate was to wait: later time without an attempt does not use up its patience."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("blocked_until_ms", sa.BigInteger(), nullable=True))
