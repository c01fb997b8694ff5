"""Copies an empty, migrated store: creating one takes longer than most tests that use it."""

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
    """The URL of the store in ``directory``: the existing one, or a new one, migrated and without a key.

    With ``key`` its future key is created first: patgate creates none for an existing store.
    """
    url = store_url("sqlite", directory)
    try:
        if key and directory.exists():
            load_or_create(directory, sqlite_path(url))
        descriptor = os.open(sqlite_path(url), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except (FileExistsError, FileNotFoundError):
        return url  # the directory is missing as well: opening the store reports that
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
