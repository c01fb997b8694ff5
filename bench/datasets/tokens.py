"""Filling a store with users and tokens, written directly into the store's own tables.

Minting through the services would hash each token with argon2id (tens of milliseconds each). Here all tokens share one
hash, which no benchmark verifies, and have the digest that a first verification would have written.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.load.workload import BRAND
from proxy.core.kinds import Reach
from proxy.core.model import ActorKind, TokenStatus, UserStatus
from proxy.core.token import TokenFormat, digest
from proxy.services import derived_secrets
from proxy.settings.sources.secret import load_or_create
from proxy.store import tables
from proxy.store.address import sqlite_path, store_url
from proxy.store.store import Store

ROLES = ("admin", "editor", "viewer")
_NARROWED = ["*:read", "*:list"]
_HASH = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$0000000000000000000000000000000000000000000"
_BATCH = 10_000


async def _create(url: str, key_fingerprint: str) -> None:
    store = await Store.open(url, key_fingerprint=key_fingerprint)
    await store.close()


def fill(data_dir: Path, tokens: Sequence[str]) -> None:
    """Create the store in ``data_dir``: for each of ``tokens`` (``workload.mint``) a user with this personal token.

    Users have the roles of ``ROLES`` in turn; every fourth token is narrowed by scopes. The store must not be open.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    url = store_url("sqlite", data_dir)
    secret_key = load_or_create(data_dir, sqlite_path(url))
    asyncio.run(_create(url, derived_secrets.fingerprint(secret_key)))
    cache_key = derived_secrets.cache_key(secret_key)
    token_format, now = TokenFormat(BRAND), time.time()
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(sqlite_path(url))))
    try:
        with engine.begin() as connection:
            for start in range(0, len(tokens), _BATCH):
                batch = list(enumerate(tokens[start : start + _BATCH], start))
                connection.execute(tables.users.insert(), [_user(number, now) for number, _ in batch])
                rows = [_token(number, token, token_format, cache_key, now) for number, token in batch]
                connection.execute(tables.tokens.insert(), rows)
    finally:
        engine.dispose()


def _user(number: int, now: float) -> dict[str, Any]:
    email = f"user{number}@example.org"
    return {
        "id": _user_id(number),
        "email": email,
        "email_key": email,
        "name": f"User {number}",
        "role": ROLES[number % len(ROLES)],
        "status": UserStatus.ACTIVE.value,
        "created_at": now,
        "updated_at": now,
    }


def _user_id(number: int) -> str:
    return f"usr_{number:016x}"


def _token(number: int, token: str, token_format: TokenFormat, cache_key: bytes, now: float) -> dict[str, Any]:
    parsed = token_format.parse(token)
    assert parsed is not None, "tokens come from workload.mint"
    return {
        "id": parsed.token_id,
        "prefix": parsed.prefix,
        "kind": parsed.kind.value,
        "reach": Reach.PERSONAL.value,
        "name": f"token {number}",
        "description": "",
        "user_id": _user_id(number),
        "org_id": None,
        "role": None,
        "scopes": _NARROWED if number % 4 == 3 else None,
        "status": TokenStatus.ACTIVE.value,
        "hash": _HASH,
        "digest": digest(cache_key, token.encode()),
        "created_by_kind": ActorKind.SYSTEM.value,
        "created_by": "bench",
        "created_at": now,
        "updated_at": now,
        "expires_at": None,
    }
