"""Filling the PostgreSQL of the measurements: the aged store of ``datasets``, copied table by table.

The indexes exist before the rows arrive, and the rows arrive in the order of their creation, so that the indexes grow
as they do in use and their size is that of a store in use.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from bench.datasets.aged_store import Filled, fill
from bench.datasets.audit_log import fill_log
from bench.scaling import statements
from proxy.store import tables

SEED: Final = 11
_COPIED: Final = ("users", "orgs", "members", "roles", "tokens", "token_usage", "token_orgs", "changes", "audit_events",
                  "audit_chain")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """What the measurements know of the rows."""

    tokens: list[str]
    """The ids of all tokens."""
    events: int
    change: int
    """The number of the last change."""


def filled_store(directory: Path, *, tokens: int, events: int) -> Filled:
    """An embedded store with this many tokens and events, to copy from. Not from within a running event loop."""
    filled = fill(directory / "filled", tokens=tokens, seed=SEED, now=time.time())
    fill_log(filled, events=events, seed=SEED)
    return filled


async def copy(connection: asyncpg.Connection, filled: Filled) -> Dataset:
    """Create the schema in an empty database and copy the rows of ``filled``."""
    for statement in statements.schema():
        await connection.execute(statement)
    with closing(sqlite3.connect(filled.database)) as source:
        for name in _COPIED:
            await _copy(connection, source, name)
    last = int(await connection.fetchval("SELECT coalesce(max(epoch), 0) FROM changes"))
    await connection.execute("INSERT INTO change_head (id, n, mark) VALUES (1, $1, $2)", last, os.urandom(16))
    await connection.execute("VACUUM ANALYZE")
    events = int(await connection.fetchval("SELECT count(*) FROM audit_events"))
    return Dataset(tokens=[token.id for token in filled.tokens], events=events, change=last)


async def _copy(connection: asyncpg.Connection, source: sqlite3.Connection, name: str) -> None:
    table = tables.metadata.tables[name]
    columns = [column.name for column in table.columns]
    present = {row[1] for row in source.execute(f"PRAGMA table_info({name})")}
    columns = [column for column in columns if column in present]

    def rows() -> Iterator[tuple[Any, ...]]:
        yield from source.execute(f"SELECT {', '.join(columns)} FROM {name} ORDER BY rowid")

    await connection.copy_records_to_table(name, records=rows(), columns=columns)
