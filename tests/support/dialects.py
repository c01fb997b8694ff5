"""The fixture by which a test runs over each database that can hold a store."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from proxy.store.dialects import postgresql
from proxy.store.dialects.postgresql import PostgresqlDatabase, PostgresqlDialect
from proxy.store.dialects.postgresql_driver import PostgresqlLimits
from tests.support import stores
from tests.support.postgres import Postgres, name_of

PATIENT = PostgresqlLimits(idle=60.0, statement=60.0, lock=60.0, commit=60.0)
"""A test's process may stand still for a second at any moment, on a busy machine."""


ON_SQLITE: Final = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
"""Marks a test, or a file by ``pytestmark``, that is about SQLite alone."""
ON_POSTGRESQL: Final = pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> Iterator[str]:
    """The scheme of the database that ``stores.address_of`` gives stores in, within the test."""
    if request.param == "sqlite":
        yield request.param
        return
    with ExitStack() as stack:
        databases = Databases(request.getfixturevalue("postgres"))
        stack.callback(databases.drop)
        stack.enter_context(stores.elsewhere(databases.address))
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(postgresql, "POSTGRESQL", PostgresqlDialect(PATIENT))
        yield request.param


class Databases:
    """Migrated databases of one server, by the directories of the stores that they stand for."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._addresses: dict[Path, str] = {}

    def address(self, directory: Path) -> str:
        """The address of this directory's database, which is created the first time."""
        if directory not in self._addresses:
            self._addresses[directory] = migrated_on(self._server)
        return self._addresses[directory]

    def drop(self) -> None:
        """Drop them all."""
        for address in self._addresses.values():
            self._server.drop_database(address)


def migrated_on(server: Postgres) -> str:
    """The address of a new database that is migrated and empty, and has no key yet."""
    return server.create_database(_template(server))


@functools.cache
def _template(server: Postgres) -> str:
    address = server.create_database()
    stores.migrate_now(lambda: PostgresqlDatabase(address))
    return name_of(address)
