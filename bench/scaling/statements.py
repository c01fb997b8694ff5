"""The statements that the measurements send beside those of ``store.dialects.postgresql_nodes``, and the schema.

Those that the store builds with SQLAlchemy (reading the feed, locking the head, resolving grants) are taken from it and
compiled; those of a change and of a batch have the shape of the store's. They are sent through asyncpg, prepared once
for each connection, as the store does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from proxy.store import feed, grants, tables

# It also compiles the store's own expressions for PostgreSQL.
from proxy.store.dialects import postgresql as _expressions  # noqa: F401
from proxy.store.recording import CHANGES_LIMIT

#: A revocation, statement by statement, after the lock.
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
def lock_head() -> str:
    """The first statement of a change."""
    return str(feed._LOCK.compile(dialect=_dialect(), compile_kwargs={"literal_binds": True}))


@cache
def _fetching() -> tuple[str, tuple[tuple[str, object], ...]]:
    compiled = feed._SINCE.compile(dialect=_dialect())
    values = compiled.params
    return str(compiled), tuple((name, values[name]) for name in compiled.positiontup or ())


def fetch(known: int) -> tuple[str, list[object]]:
    """The statement that lists the keys of the changes after ``known``, and its parameters."""
    text, places = _fetching()
    given: dict[str, object] = {"known": known, "most": CHANGES_LIMIT}
    return text, [given.get(name, value) for name, value in places]


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
