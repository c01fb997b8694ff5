"""A database with the schema of a store, copied from a template that is migrated once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from proxy.services import derived_secrets
from proxy.settings.sources.secret import decode_key
from proxy.store.store import Store
from tests.support.postgres import Postgres, name_of
from tests.unit.authority.consistency.kit import SECRET_KEY


@pytest.fixture(scope="session")
def migrated_database(postgres: Postgres) -> str:
    """The name of a database that nothing but copies is made of."""
    url = postgres.create_database()
    secret = decode_key(SECRET_KEY)
    assert secret is not None

    async def migrate() -> None:
        store = await Store.open(url, key_fingerprint=derived_secrets.fingerprint(secret))
        await store.close()

    asyncio.run(migrate())
    return name_of(url)


@pytest.fixture
def store_url(postgres: Postgres, migrated_database: str) -> Iterator[str]:
    """The address of a new store."""
    url = postgres.create_database(migrated_database)
    yield url
    postgres.drop_database(url)
