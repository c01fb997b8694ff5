"""Copies an empty, migrated store: creating one takes longer than most tests that use it.

A test that runs over several databases names its store by a directory. The fixture ``dialect`` (``support.dialects``)
decides whether the store is a file in that directory or a database of PostgreSQL that belongs to it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from proxy.settings.sources.secret import load_or_create
from proxy.store import migrate
from proxy.store.address import sqlite_path, store_url
from proxy.store.dialects.dialect import Database
from proxy.store.dialects.sqlite import SqliteDatabase

_ELSEWHERE: list[Callable[[Path], str]] = []
"""What gives the address of a directory's store, if it is no file in that directory."""


def address_of(directory: Path) -> str:
    """The address of the migrated store that belongs to ``directory``, in the database that the test runs over."""
    return _ELSEWHERE[-1](directory) if _ELSEWHERE else migrated(directory)


@contextmanager
def elsewhere(address: Callable[[Path], str]) -> Iterator[None]:
    """Within the block ``address_of`` asks ``address``."""
    _ELSEWHERE.append(address)
    try:
        yield
    finally:
        _ELSEWHERE.pop()


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
    with tempfile.TemporaryDirectory() as name:
        path = sqlite_path(store_url("sqlite", Path(name)))
        migrate_now(lambda: SqliteDatabase(path))
        return path.read_bytes()


def migrate_now(make: Callable[[], Database]) -> None:
    """Migrate the database that ``make`` returns, even if an event loop runs in this thread."""
    with ThreadPoolExecutor(1) as beside_a_loop:
        beside_a_loop.submit(asyncio.run, _migrate(make)).result()


async def _migrate(make: Callable[[], Database]) -> None:
    database = make()
    try:
        await database.open()
        async with database.write() as connection:
            await migrate.run(connection)
            await database.commit(connection)
    finally:
        await database.close()
