"""Which row of a case holds, and where the case's audit log stood when it was written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("results", sa.Column("current", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("results", sa.Column("audit_start", sa.String(64)))
    op.add_column("results", sa.Column("audit_entries", sa.Integer))
    op.add_column("results", sa.Column("audit_seal", sa.String(64)))
    rows = sa.table(
        "results", *(sa.column(n) for n in ("id", "case_id", "created")), sa.column("current", sa.Boolean)
    )
    other = rows.alias("other")
    later = (
        sa.select(other.c.id)
        .where(other.c.case_id == rows.c.case_id)
        .where(
            (other.c.created > rows.c.created)
            | ((other.c.created == rows.c.created) & (other.c.id > rows.c.id))
        )
    )
    # The last that was written, as far as its time tells.
    op.execute(sa.update(rows).where(~later.exists()).values(current=sa.true()))
