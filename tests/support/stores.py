"""An empty store as the migrations leave it, copied: making one takes longer than most tests of what is kept in it."""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from proxy.settings.sources.secret import load_or_create
from proxy.store import migrate
from proxy.store.address import sqlite_path, store_url
from proxy.store.dialects.sqlite import SqliteDatabase


def migrated(directory: Path, *, key: bool = False) -> str:
    """The URL of the store in ``directory``: the one that is there, else a new one, migrated and of no key yet.

    With ``key`` the key that it is going to have is made first: patgate makes none for a store that exists.
    """
    url = store_url("sqlite", directory)
    try:
        if key and directory.exists():
            load_or_create(directory, sqlite_path(url))
        descriptor = os.open(sqlite_path(url), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except (FileExistsError, FileNotFoundError):
        return url  # no directory either: whoever opens the store is told so
    with os.fdopen(descriptor, "wb") as file:
        file.write(_empty())
    return url


@functools.cache
def _empty() -> bytes:
    with ThreadPoolExecutor(1) as beside_a_loop, tempfile.TemporaryDirectory() as name:
        path = sqlite_path(store_url("sqlite", Path(name)))
        beside_a_loop.submit(asyncio.run, _make(path)).result()
        return path.read_bytes()


async def _make(path: Path) -> None:
    database = SqliteDatabase(path)
    try:
        await database.open()
        async with database.write() as connection:
            await migrate.run(connection)
            await database.commit(connection)
    finally:
        await database.close()
