"""The statements of docs/consistency.md as the measurements send them, and the schema that they run on.

The tables are those of ``store.tables``. Statements are sent through asyncpg, prepared once for each connection, as the
store does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from proxy.store import grants, tables

CHANNEL: Final = "patgate_changes"

#: Rule 1: one statement, one durable commit. It returns the head and the history of the store.
RENEW: Final = (
    "WITH renewed AS (UPDATE nodes SET renewals = renewals + 1, renewed_at = $2 WHERE id = $1 RETURNING renewals) "
    "SELECT renewed.renewals, h.n, h.mark, clock_timestamp() AS at, "
    "(SELECT system_identifier FROM pg_control_system()) AS system, "
    "left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline, "
    "(SELECT oid FROM pg_database WHERE datname = current_database()) AS database, "
    "'changes'::regclass::oid AS changes "
    "FROM renewed, change_head h WHERE h.id = 1"
)
#: Rule 5.
HEAD: Final = "SELECT n, mark FROM change_head WHERE id = 1"
#: Rule 6: ``set_config`` makes this one transaction asynchronous, on a session whose renewals are durable.
ACKNOWLEDGE: Final = (
    "UPDATE acknowledgements SET applied = $2 "
    "FROM (SELECT set_config('synchronous_commit', 'off', true)) AS quick WHERE id = $1"
)
#: Rule 7: the keys of the changes after ``$1``, with the bounds of the feed, in one snapshot.
FETCH: Final = (
    "SELECT (SELECT n FROM change_head WHERE id = 1) AS head, (SELECT min(epoch) FROM changes) AS first, "
    "(SELECT json_agg(c.touched ORDER BY c.epoch) FROM (SELECT epoch, touched FROM changes WHERE epoch > $1 "
    "ORDER BY epoch LIMIT 10000) c) AS touched"
)
#: Rule 13.
POLL: Final = "SELECT n.id, a.applied, n.renewals FROM nodes n LEFT JOIN acknowledgements a ON a.id = n.id"

#: Rules 8 to 10: a revocation, statement by statement.
LOCK_HEAD: Final = "SELECT n, mark FROM change_head WHERE id = 1 FOR UPDATE"
READ_TOKEN: Final = "SELECT * FROM tokens WHERE id = $1"
REVOKE: Final = (
    "UPDATE tokens SET status = 'revoked', listed_as = 'revoked', revoked_at = $2, updated_at = $2 WHERE id = $1"
)
LOCK_CHAIN: Final = "SELECT head_n, head_hash FROM audit_chain WHERE id = 1 FOR UPDATE"
MOVE_CHAIN: Final = "UPDATE audit_chain SET head_n = $1, head_hash = $2 WHERE id = 1"
CHANGE: Final = "INSERT INTO changes (epoch, touched, at, mark) VALUES ($1, $2, $3, $4)"
MOVE_HEAD: Final = "UPDATE change_head SET n = $1, mark = $2 WHERE id = 1"

EVENT_COLUMNS: Final = tuple(column.name for column in tables.audit_events.columns)
#: A batch of request events and one of uses, as the recorder writes them.
EVENT: Final = (
    f"INSERT INTO audit_events ({', '.join(EVENT_COLUMNS)}) "
    f"VALUES ({', '.join(f'${place}' for place in range(1, len(EVENT_COLUMNS) + 1))})"
)
USE: Final = (
    "INSERT INTO token_usage (token_id, last_used_at, last_used_ip, use_count) "
    "SELECT id, $2::float8, $3::text, $4::bigint FROM tokens WHERE id = $1 ON CONFLICT (token_id) DO UPDATE SET "
    "use_count = token_usage.use_count + excluded.use_count, "
    "last_used_at = CASE WHEN token_usage.last_used_at IS NULL OR excluded.last_used_at >= token_usage.last_used_at "
    "THEN excluded.last_used_at ELSE token_usage.last_used_at END, "
    "last_used_ip = CASE WHEN token_usage.last_used_at IS NULL OR excluded.last_used_at >= token_usage.last_used_at "
    "THEN excluded.last_used_ip ELSE token_usage.last_used_ip END"
)


@cache
def _dialect() -> sa.Dialect:
    return postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


def schema() -> list[str]:
    """The statements that create the tables and their indexes."""
    tables.set_index_conditions("postgresql")
    made = []
    for table in tables.metadata.sorted_tables:
        made.append(str(CreateTable(table).compile(dialect=_dialect())))
        made += [
            str(CreateIndex(index).compile(dialect=_dialect()))
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        ]
    return made


@cache
def _resolving(size: int) -> tuple[str, tuple[tuple[str, object], ...]]:
    compiled = grants._select(size).compile(dialect=_dialect())
    values = compiled.params
    return str(compiled), tuple((name, values[name]) for name in compiled.positiontup or ())


def resolve(ids: Sequence[str]) -> tuple[str, list[object]]:
    """The query of ``store.grants`` that resolves these tokens, and its parameters."""
    text, places = _resolving(len(ids))
    given: dict[str, object] = {f"id_{place}": id_ for place, id_ in enumerate(ids)}
    return text, [given.get(name, value) for name, value in places]
