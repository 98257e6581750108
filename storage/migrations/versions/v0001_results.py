"""One row a report."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "results",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("case_id", sa.String(128), nullable=False),
        sa.Column("report_uuid", sa.String(36), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("specimen", sa.String(16)),
        sa.Column("n_cells", sa.Integer, nullable=False),
        sa.Column("n_denominator", sa.Integer, nullable=False),
        sa.Column("differential", sa.JSON, nullable=False),
        sa.Column("rs_pct", sa.Float),
        sa.Column("rs_ci_low", sa.Float),
        sa.Column("rs_ci_high", sa.Float),
        sa.Column("rs_evidence", sa.String(16)),
        sa.Column("flags", sa.JSON, nullable=False),
        sa.Column("software_version", sa.String(64), nullable=False),
        sa.Column("result_sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_results"),
        sa.UniqueConstraint("case_id", "fingerprint", name="uq_results_case_id"),
    )
    op.create_index("ix_results_case_created", "results", ["case_id", "created"])
