"""Who reviewed a report, and when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("results", sa.Column("reviewer", sa.String(128)))
    op.add_column("results", sa.Column("reviewed_at", sa.DateTime(timezone=True)))
