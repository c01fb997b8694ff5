"""The IP ranges of a token."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("tokens", sa.Column("ip_ranges", sa.JSON(), nullable=True))
