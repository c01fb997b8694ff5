"""Emails are compared after NFKC and IDNA; the newest event of a change is found by an index."""

import contextlib
import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    where = sa.text("epoch > 0")
    name = "ix_audit_events_epoch_changed"
    op.create_index(name, "audit_events", ["epoch"], unique=False, sqlite_where=where, postgresql_where=where)
    _compare_emails()


def _compare_emails() -> None:
    """Give users the new key.

    If the emails of two users that are not removed have the same new key, the older user gets it; the other keeps its
    old key, and is found by id.
    """
    users = sa.table("users", *map(sa.column, ("id", "email", "email_key", "created_at", "removed_at")))
    connection = op.get_bind()
    rows = connection.execute(sa.select(users).order_by(users.c.created_at, users.c.id))
    changed = [(row.id, _key(row.email), row.removed_at is None) for row in rows if _key(row.email) != row.email_key]
    for user_id, key, living in changed:
        taken = sa.select(users.c.id).where(
            users.c.email_key == key, users.c.removed_at.is_(None), users.c.id != user_id
        )
        if living and connection.execute(taken.limit(1)).first() is not None:
            continue
        connection.execute(users.update().where(users.c.id == user_id).values(email_key=key))


def _key(text: str) -> str:
    """``services.emails.key`` as it was when this revision was written."""
    plain = unicodedata.normalize("NFKC", text).strip()
    folded = unicodedata.normalize("NFKC", plain.casefold())
    local, at, domain = folded.rpartition("@")
    if not at:
        return folded
    given = plain.rpartition("@")[2].lower()
    with contextlib.suppress(UnicodeError):
        domain = _ascii(given)
    return f"{local}@{domain}"


def _ascii(domain: str) -> str:
    if domain.isascii() and "xn--" not in domain:
        return domain
    import idna

    labels = []
    for label in idna.uts46_remap(domain, std3_rules=False, transitional=False).split("."):
        if not label.isascii():
            labels.append(idna.alabel(label).decode("ascii"))
        elif label.startswith("xn--"):
            labels.append(idna.alabel(idna.ulabel(label)).decode("ascii"))
        else:
            labels.append(label)
    return ".".join(labels)
