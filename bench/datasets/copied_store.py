"""Copying a filled embedded store into PostgreSQL, as ``patgate store copy`` does, without its comparisons.

That command reads every row back and verifies the chain of the audit log twice, which takes most of its time and
changes nothing in the copy.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.errors import BenchError
from bench.system.postgres import USER, Server
from proxy.store import store_info
from proxy.store.copying.columns import COPIED
from proxy.store.copying.source import EmbeddedSource
from proxy.store.copying.target import PostgresqlTarget


def address(server: Server, database: str) -> str:
    """The setting ``store`` for a database of the server, over its Unix socket."""
    return f"postgresql://{USER}@/{database}?host={server.sockets}"


def copy_into(database: Path, server: Server, name: str) -> str:
    """Copy the embedded store in the file ``database`` into the empty database ``name``; returns its address.

    Raises BenchError for a row that PostgreSQL does not take.
    """
    target = address(server, name)
    asyncio.run(_copy(database, target))
    return target


async def _copy(path: Path, address: str) -> None:
    target = PostgresqlTarget(address)
    with EmbeddedSource.opened(path) as source:
        async with target.opened(), target.writing() as copying:
            await copying.create()
            for table in COPIED:
                async for batch in source.batches(table):
                    if batch.misfits:
                        raise BenchError(f"PostgreSQL does not take a row of {table.name}.")
                    await copying.add(table, batch.rows)
            await copying.index()
            store_id = await store_info.read(copying.connection, store_info.STORE_ID)
            await copying.commit(target, store_id or "")
