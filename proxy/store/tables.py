"""The tables. The same definitions serve SQLite and PostgreSQL; the migrations are the frozen history of this file.

Conventions: times are unix seconds (``Double``); ids are opaque text; lists and maps are JSON; a role is stored by
name, not by reference, so that a deleted role means "no permissions" instead of a row that cannot be deleted. Status
columns hold the values of the enumerations in ``core.model``.

Rotation in two phases (``previous_*``) and identities from an issuer (``issuer``, ``subject``, ``external_id``) have
their columns already; later versions use them.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from proxy.core.kinds import OF_ORGS

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata: Final = sa.MetaData(naming_convention=NAMING)

Json: Final = sa.JSON(none_as_null=True)
#: SQLite aliases the rowid (the fast path for ``max()``) only by a column declared INTEGER.
Number: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _partial_index(name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool], unique: bool = False) -> None:
    """An index of the rows for which ``where`` holds. No dialect learns of it here (``set_index_conditions``)."""
    sa.Index(name, *columns, unique=unique, info={"where": where})


def set_index_conditions(dialect: str) -> None:
    """Make ``CREATE INDEX`` of this dialect (``sqlite`` or ``postgresql``) say which rows each partial index covers.

    The migrations create the indexes, so a start needs none of this. An index that names a dialect loads it, with its
    driver's adapter: 30 ms of each start.
    """
    for table in metadata.tables.values():
        for index in table.indexes:
            if "where" in index.info:
                index.dialect_options[dialect]["where"] = index.info["where"]


def _token_column() -> sa.Column[str]:
    return sa.Column("token_id", sa.String(32), sa.ForeignKey("tokens.id", ondelete="CASCADE"), primary_key=True)


meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("email", sa.String(320), nullable=False),
    sa.Column("email_key", sa.String(320), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.String(128), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("issuer", sa.Text),
    sa.Column("subject", sa.Text),
    sa.Column("external_id", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("removed_at", sa.Double),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "external_id"),
)
# An email belongs to at most one user that is not removed; a removed one keeps its row for the audit log.
LIVING: Final = users.c.removed_at.is_(None)
_partial_index(
    "uq_users_email_key_living",
    users.c.email_key,
    unique=True,
    where=LIVING,
)
_partial_index(
    "uq_users_issuer_subject_living",
    users.c.issuer,
    users.c.subject,
    unique=True,
    where=LIVING,
)
# The list of users shows only these, however many were removed.
_partial_index("ix_users_created_at_id_living", users.c.created_at, users.c.id, where=LIVING)

orgs = sa.Table(
    "orgs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("policy", Json),
    sa.Column("external_id", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.UniqueConstraint("name"),
    sa.Index(None, "created_at", "id"),
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("org_id", sa.String(32), sa.ForeignKey("orgs.id"), primary_key=True),
    sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id"), primary_key=True),
    sa.Column("role", sa.String(128), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Index(None, "user_id"),
)

# Open invitations to become a member: a row is deleted when it is answered. They are addressed to an email and not to a
# user, so that nothing here reveals whether such a user exists. ``token_id`` is the token that invited, null for the
# operator; no foreign key: that token may be deleted.
invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("org_id", sa.String(32), sa.ForeignKey("orgs.id"), nullable=False),
    sa.Column("email", sa.String(320), nullable=False),
    sa.Column("email_key", sa.String(320), nullable=False),
    sa.Column("role", sa.String(128), nullable=False),
    sa.Column("token_id", sa.String(32)),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.UniqueConstraint("org_id", "email_key"),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "org_id", "created_at", "id"),
    sa.Index(None, "email_key", "created_at", "id"),
)

roles = sa.Table(
    "roles",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("permissions", Json, nullable=False),
    # The permissions in the configuration when it was last applied; null for a role that it never named.
    sa.Column("config_permissions", Json),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("prefix", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("reach", sa.String(16), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    # The owner: null for a key, which belongs to its organisation and outlives its creator.
    sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id")),
    sa.Column("org_id", sa.String(32), sa.ForeignKey("orgs.id")),
    # Fixed at creation for a key; null for a token that follows its owner's role.
    sa.Column("role", sa.String(128)),
    # Null: all of the role's permissions. An empty list: none.
    sa.Column("scopes", Json),
    # Networks that the token may be used from. Null: any. An empty list: none.
    sa.Column("ip_ranges", Json),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    # The keyed digest, a cache of a successful verification of ``hash``; null before the first one.
    sa.Column("digest", sa.LargeBinary),
    sa.Column("previous_hash", sa.Text),
    sa.Column("previous_digest", sa.LargeBinary),
    sa.Column("previous_until", sa.Double),
    # The token that minted this one. No foreign key: that token may be deleted.
    sa.Column("parent_id", sa.String(32)),
    sa.Column("created_by_kind", sa.String(16), nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("rotated_at", sa.Double),
    sa.Column("expires_at", sa.Double),
    # Seconds from creation to the original expiry; null if it has none. An early end changes ``expires_at`` only.
    sa.Column("lifetime", sa.Double),
    sa.Column("revoked_at", sa.Double),
    # The smallest notice of expiry, in days, that was sent already.
    sa.Column("notified_days", sa.Integer),
    # The status by which lists find it (``tokens.queries``): "revoked" once the token is revoked or its owner removed,
    # "expired" once housekeeping has noticed the expiry, otherwise "active". No decision depends on it.
    sa.Column("listed_as", sa.String(16), nullable=False, server_default="active"),
    sa.Index(None, "created_at", "id"),
    sa.Index(None, "user_id", "created_at", "id"),
    sa.Index(None, "org_id", "created_at", "id"),
    # With the expiry at the end a page of one status is found without reading a row.
    sa.Index(None, "listed_as", "created_at", "id", "expires_at"),
    sa.Index(None, "user_id", "listed_as", "created_at", "id", "expires_at"),
    sa.Index(None, "org_id", "listed_as", "created_at", "id", "expires_at"),
    sa.Index(None, "listed_as", "expires_at", "id", "notified_days"),
)
# Most tokens have no parent, and statistics over them all would make the planner scan instead of use the index.
_partial_index("ix_tokens_parent_id", tokens.c.parent_id, where=tokens.c.parent_id.is_not(None))
# Few among many. A literal, because SQLite uses a partial index only if the query has the same text, no parameter.
KEYS: Final = sa.or_(*(tokens.c.kind == sa.literal_column(f"'{kind.value}'") for kind in OF_ORGS))
_partial_index("ix_tokens_created_at_id_keys", tokens.c.created_at, tokens.c.id, where=KEYS)
_partial_index("ix_tokens_org_id_created_at_id_keys", tokens.c.org_id, tokens.c.created_at, tokens.c.id, where=KEYS)

# A table of its own: these rows change all the time, in batches, and no decision depends on them.
token_usage = sa.Table(
    "token_usage",
    metadata,
    _token_column(),
    sa.Column("last_used_at", sa.Double),
    sa.Column("last_used_ip", sa.String(64)),
    sa.Column("use_count", sa.BigInteger, nullable=False),
    sa.Column("scopes_used", Json),
)

# Organisations that a token of reach "orgs" is attached to, each with its own permissions; a row takes a seat of that
# organisation.
token_orgs = sa.Table(
    "token_orgs",
    metadata,
    _token_column(),
    sa.Column("org_id", sa.String(32), sa.ForeignKey("orgs.id"), primary_key=True),
    sa.Column("permissions", Json),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Index(None, "org_id"),
)

# One row for each committed change; the greatest number is the epoch.
changes = sa.Table(
    "changes",
    metadata,
    sa.Column("epoch", Number, primary_key=True, autoincrement=False),
    sa.Column("touched", Json, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    # 16 random bytes, by which a writer whose commit is in doubt finds its own change. Null before schema 0006.
    sa.Column("mark", sa.LargeBinary),
)

# The number and the mark of the newest change, in one row. A change locks the row first, so numbers are in the order of
# the commits (docs/consistency.md). ``lease_bound`` is the longest lease that a node may have, in seconds; 0 before the
# first node.
change_head = sa.Table(
    "change_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.BigInteger, nullable=False),
    sa.Column("mark", sa.LargeBinary, nullable=False),
    sa.Column("lease_bound", sa.Double, nullable=False, server_default="0"),
)

# One row for each node that may serve from its cache. ``renewals`` counts the renewals of its lease: a revoker deletes
# the row only with the count that it saw. Times are for people to read; no decision uses them.
nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("version", sa.String(32), nullable=False),
    sa.Column("protocol", sa.Integer, nullable=False),
    sa.Column("schema", sa.String(32), nullable=False),
    sa.Column("config_hash", sa.String(64), nullable=False),
    sa.Column("lease", sa.Double, nullable=False),
    sa.Column("renewals", sa.BigInteger, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("renewed_at", sa.Double, nullable=False),
)

# Up to which change each node has raised its page. Apart from ``nodes``, because these rows are written without waiting
# for the disk, and a renewal must not wait for them.
acknowledgements = sa.Table(
    "acknowledgements",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("applied", sa.BigInteger, nullable=False),
)

# The last batch of usage and request events that each authority has stored, so that one in doubt is not counted twice.
writers = sa.Table(
    "writers",
    metadata,
    sa.Column("incarnation", sa.String(32), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

# Every set of roles that a configuration has ever applied, by the hash of its content. One that was superseded is never
# applied by itself again.
applied_roles = sa.Table(
    "applied_roles",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

# The node that does a periodic task, and until when (unix seconds): others leave it alone.
chores = sa.Table(
    "chores",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("node", sa.String(32), nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)

audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("n", Number, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("level", sa.String(16), nullable=False),
    sa.Column("org_id", sa.String(32), nullable=False),
    sa.Column("actor_kind", sa.String(16), nullable=False),
    sa.Column("actor_id", sa.String(64), nullable=False),
    sa.Column("actor_name", sa.Text, nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target_kind", sa.String(16), nullable=False),
    sa.Column("target_id", sa.String(128), nullable=False),
    sa.Column("target_name", sa.Text, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("decision_id", sa.String(64), nullable=False),
    # The change that this event belongs to; 0 for an event of a request.
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("details", Json, nullable=False),
    # The user whose account log has the event; "" for none.
    sa.Column("user_id", sa.String(32), nullable=False, server_default=""),
    sa.Column("prev_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    # Each index costs every event, so only filters that lead a query have one (``audit.queries``), in the order of time
    # (and number, which SQLite keeps at the end of every entry).
    sa.Index(None, "at"),
    sa.Index(None, "decision_id"),
)
# Events without a value are not in these indexes. SQLite uses them only if a query has the same text: hence literals.
EVENT_HAS: Final = {
    name: audit_events.c[name] != sa.literal_column("''")
    for name in ("actor_id", "actor_name", "user_id", "org_id", "target_id")
}
for _name, _has in EVENT_HAS.items():
    _partial_index(f"ix_audit_events_{_name}_at", audit_events.c[_name], audit_events.c.at, where=_has)
# Refused, reported or failed: few among many, and the usual reason to read the log.
EVENT_UNUSUAL: Final = audit_events.c.outcome.not_in([sa.literal_column("'done'"), sa.literal_column("'allowed'")])
_partial_index("ix_audit_events_at_unusual", audit_events.c.at, where=EVENT_UNUSUAL)
# Changes made by a request; the request's own event has the same id as its decision.
EVENT_ASKED: Final = sa.and_(
    audit_events.c.decision_id == sa.literal_column("''"), audit_events.c.request_id != sa.literal_column("''")
)
_partial_index("ix_audit_events_request_id_asked", audit_events.c.request_id, where=EVENT_ASKED)

# Events of changes: they show whether the log was cut at its end (``audit.chain``).
EVENT_CHANGED: Final = audit_events.c.epoch > sa.literal_column("0")
_partial_index("ix_audit_events_epoch_changed", audit_events.c.epoch, where=EVENT_CHANGED)

# One row. ``base_*`` is the last event that retention removed (0 and "" at first), ``head_*`` the newest: an event
# missing at either end is detected as surely as one in the middle.
audit_chain = sa.Table(
    "audit_chain",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("base_n", sa.BigInteger, nullable=False),
    sa.Column("base_hash", sa.String(64), nullable=False),
    sa.Column("head_n", sa.BigInteger, nullable=False),
    sa.Column("head_hash", sa.String(64), nullable=False),
)

# What a request with an ``Idempotency-Key`` created, so that a retry creates nothing more. Both hashes are SHA-256 in
# hex; neither response nor secret is stored.
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("caller", sa.String(64), primary_key=True),
    sa.Column("key_hash", sa.String(64), primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    sa.Column("target_id", sa.String(64), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Index(None, "at"),
)

# Counts of requests that report-only routes would have refused. ``permission`` is the missing permission, ``token_id``
# the token of the requests ("" for none); ``decision_id`` is that of the last request.
route_reports = sa.Table(
    "route_reports",
    metadata,
    sa.Column("route", sa.String(200), primary_key=True),
    sa.Column("reason", sa.String(32), primary_key=True),
    sa.Column("permission", sa.String(600), primary_key=True),
    sa.Column("token_id", sa.String(32), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("first_at", sa.Double, nullable=False),
    sa.Column("last_at", sa.Double, nullable=False),
    sa.Column("method", sa.String(32), nullable=False),
    sa.Column("decision_id", sa.String(64), nullable=False),
)
