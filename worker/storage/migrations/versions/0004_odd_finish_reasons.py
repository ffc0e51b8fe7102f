"""Unusual finish reasons in the usage rows: they are counted by batch without reading the results.

A worker of an older version leaves the column empty. Answers that were recorded before are not counted.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_IS_ODD = sa.text("odd_finish_reason IS NOT NULL")


def upgrade() -> None:
    op.add_column("usage", sa.Column("odd_finish_reason", sa.String(), nullable=True))
    op.create_index(
        "ix_usage_odd_end",
        "usage",
        ["batch_id", "odd_finish_reason"],
        unique=False,
        sqlite_where=_IS_ODD,
        postgresql_where=_IS_ODD,
    )


def downgrade() -> None:
    op.drop_index("ix_usage_odd_end", table_name="usage")
    op.drop_column("usage", "odd_finish_reason")
