"""Token values are hashed in one queue, of which no user takes all places."""

from __future__ import annotations

import asyncio

import pytest

from proxy.core.errors import AuthorityOverloaded
from proxy.core.kinds import Kind
from proxy.core.model import Actor, Credential
from proxy.services.tokens.issuance import AT_ONCE, Minter
from tests.contract.kit import ADMIN, CACHE_KEY, FORMAT, ScryptHasher
from tests.unit.authority.waiting import until


class Held(ScryptHasher):
    """Hashes nothing until it is released."""

    def __init__(self) -> None:
        self.waiting = 0
        self.free = asyncio.Event()

    async def hash(self, token: str) -> str:
        self.waiting += 1
        await self.free.wait()
        return await super().hash(token)


def holder(user_id: str, token_id: str) -> Actor:
    credential = Credential(token_id=token_id, prefix=f"acme_pat_{token_id}", digest=b"")
    return Actor(kind=Kind.PAT, id=token_id, name="t", user_id=user_id, credential=credential)


async def test_one_user_does_not_keep_others_from_hashing() -> None:
    hasher = Held()
    minter = Minter(format=FORMAT, hasher=hasher, cache_key=CACHE_KEY)
    many = [
        asyncio.create_task(minter.value(holder("usr_a", f"token{number}"), Kind.PAT), name=f"value {number}")
        for number in range(AT_ONCE)
    ]
    await until(lambda: hasher.waiting == AT_ONCE)
    with pytest.raises(AuthorityOverloaded):
        await minter.value(holder("usr_a", "another"), Kind.PAT)
    others = [
        asyncio.create_task(minter.value(actor, Kind.PAT), name="another's value")
        for actor in (holder("usr_b", "theirs"), *[ADMIN] * (2 * AT_ONCE))
    ]
    await until(lambda: hasher.waiting == 3 * AT_ONCE + 1)
    many[0].cancel()
    hasher.free.set()
    made = await asyncio.gather(*many[1:], *others)
    assert len({value.token for value in made}) == 3 * AT_ONCE
    await minter.value(holder("usr_a", "another"), Kind.PAT)
