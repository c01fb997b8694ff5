"""Owners of audit events, idempotency keys, report-only counts, and indexes for lists of tokens and events."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEYS = sa.text("kind = 'key'")
LIVING = sa.text("removed_at IS NULL")


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("audit_events", sa.Column("user_id", sa.String(length=32), nullable=False, server_default=""))
    _searched_events()
    op.create_table(
        "idempotency",
        sa.Column("caller", sa.String(length=64), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("target_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key_hash", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_at", "idempotency", ["at"], unique=False)
    op.create_table(
        "route_reports",
        sa.Column("route", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("permission", sa.String(length=600), nullable=False),
        sa.Column("token_id", sa.String(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("method", sa.String(length=32), nullable=False),
        sa.Column("decision_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("route", "reason", "permission", "token_id", name="pk_route_reports"),
    )
    _listed_tokens()


def _searched_events() -> None:
    for name in ("actor_id", "actor_name", "org_id", "target_id"):
        op.drop_index(f"ix_audit_events_{name}_n", "audit_events")
    for name in ("actor_id", "actor_name", "user_id", "org_id", "target_id"):
        _some_events(f"ix_audit_events_{name}_at", [name, "at"], f"{name} != ''")
    _some_events("ix_audit_events_at_unusual", ["at"], "outcome NOT IN ('done', 'allowed')")
    _some_events("ix_audit_events_request_id_asked", ["request_id"], "decision_id = '' AND request_id != ''")


def _some_events(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "audit_events", columns, unique=False, sqlite_where=where, postgresql_where=where)


def _listed_tokens() -> None:
    op.add_column("tokens", sa.Column("listed_as", sa.String(length=16), nullable=False, server_default="active"))
    op.execute(
        "UPDATE tokens SET listed_as = 'revoked' WHERE status = 'revoked' "
        "OR user_id IN (SELECT id FROM users WHERE status = 'removed')"
    )
    op.add_column("tokens", sa.Column("lifetime", sa.Double(), nullable=True))
    op.execute("UPDATE tokens SET lifetime = expires_at - created_at WHERE expires_at IS NOT NULL")
    op.drop_index("ix_tokens_expires_at", "tokens")
    op.drop_index("ix_tokens_parent_id", "tokens")
    name, where = "ix_tokens_parent_id", sa.text("parent_id IS NOT NULL")
    op.create_index(name, "tokens", ["parent_id"], unique=False, sqlite_where=where, postgresql_where=where)
    for columns in (
        ["listed_as", "created_at", "id", "expires_at"],
        ["user_id", "listed_as", "created_at", "id", "expires_at"],
        ["org_id", "listed_as", "created_at", "id", "expires_at"],
        ["listed_as", "expires_at", "id", "notified_days"],
    ):
        op.create_index(f"ix_tokens_{'_'.join(columns)}", "tokens", columns, unique=False)
    for columns in (["created_at", "id"], ["org_id", "created_at", "id"]):
        name = f"ix_tokens_{'_'.join(columns)}_keys"
        op.create_index(name, "tokens", columns, unique=False, sqlite_where=KEYS, postgresql_where=KEYS)
    name = "ix_users_created_at_id_living"
    op.create_index(name, "users", ["created_at", "id"], unique=False, sqlite_where=LIVING, postgresql_where=LIVING)
