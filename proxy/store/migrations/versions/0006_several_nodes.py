"""Several nodes on one store: the head of the changes, nodes, acknowledgements, writers, applied roles and chores."""

import os

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("changes", sa.Column("mark", sa.LargeBinary(), nullable=True))
    head = op.create_table(
        "change_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("mark", sa.LargeBinary(), nullable=False),
        sa.Column("lease_bound", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_change_head"),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("protocol", sa.Integer(), nullable=False),
        sa.Column("schema", sa.String(length=32), nullable=False),
        sa.Column("config_hash", sa.String(length=64), nullable=False),
        sa.Column("lease", sa.Double(), nullable=False),
        sa.Column("renewals", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("renewed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_nodes"),
    )
    op.create_table(
        "acknowledgements",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("applied", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_acknowledgements"),
    )
    op.create_table(
        "writers",
        sa.Column("incarnation", sa.String(length=32), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("incarnation", name="pk_writers"),
    )
    op.create_table(
        "applied_roles",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_applied_roles"),
    )
    op.create_table(
        "chores",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("node", sa.String(length=32), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_chores"),
    )
    changes = sa.table("changes", sa.column("epoch"))
    last = op.get_bind().execute(sa.select(sa.func.coalesce(sa.func.max(changes.c.epoch), 0))).scalar_one()
    op.get_bind().execute(head.insert().values(id=1, n=last, mark=os.urandom(16)))
    # The row of an empty log, so that the first writers of several have something to lock.
    chain = sa.table("audit_chain", *(sa.column(name) for name in ("id", "base_n", "base_hash", "head_n", "head_hash")))
    if op.get_bind().execute(sa.select(chain.c.id)).first() is None:
        op.get_bind().execute(chain.insert().values(id=1, base_n=0, base_hash="", head_n=0, head_hash=""))
