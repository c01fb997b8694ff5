"""A presented token is proved by argon2 once, and never by the proof of another token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.authority.grants.argon2_hasher import Argon2Hasher, HashParameters
from proxy.authority.grants.resolver import PROOFS_PER_PREFIX, GrantResolver, Resolution
from proxy.core.errors import AuthorityOverloaded, StoreUnavailable
from proxy.core.kinds import Kind
from proxy.core.model import Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.core.token import digest
from proxy.observe.metrics import HashOutcome
from tests.unit.authority.memory import CACHE_KEY, TOKENS, MemoryGrants
from tests.unit.authority.waiting import until


class World:
    """A resolver over an in-memory store with a real, cheap hasher, and a list of its computations."""

    def __init__(self) -> None:
        self.computations: list[HashOutcome] = []
        cheap = HashParameters(time_cost=2, memory_kib=1024)
        self.hasher = Argon2Hasher(cheap, threads=2, queue=64, counted=self.computations.append)
        self.grants = MemoryGrants()
        self.resolver = GrantResolver(self.grants, self.hasher, tokens=TOKENS, cache_key=CACHE_KEY)

    async def mint(self) -> tuple[str, str]:
        minted = TOKENS.mint(Kind.PAT)
        self.grants.add(minted.token, await self.hasher.hash(minted.token))
        self.computations.clear()
        return minted.prefix, minted.token


class Gate:
    """A real verifier that waits until it is released."""

    def __init__(self, verifier: Argon2Hasher) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self._verifier = verifier

    async def verify(self, hash: str, token: str) -> bool:
        self.entered.set()
        await self.open.wait()
        return await self._verifier.verify(hash, token)


def other_secret(token: str) -> str:
    parsed = TOKENS.parse(token)
    assert parsed is not None
    return TOKENS.mint(parsed.kind, parsed.token_id).token


def reason(resolution: Resolution) -> Reason:
    return resolution.outcome.reason if isinstance(resolution.outcome, RefusedGrant) else Reason.ALLOWED


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.hasher.close()


async def test_the_first_verification_runs_argon2_and_the_second_does_not(world: World) -> None:
    prefix, token = await world.mint()
    first = await world.resolver.verify(prefix, token)
    assert isinstance(first.outcome, Grant)
    assert first.outcome.digest == digest(CACHE_KEY, token.encode())
    assert reason(await world.resolver.verify(prefix, token)) is Reason.ALLOWED
    assert world.computations == [HashOutcome.MATCHED]


async def test_with_a_digest_a_wrong_secret_is_refused_without_argon2(world: World) -> None:
    prefix, token = await world.mint()
    await world.resolver.verify(prefix, token)
    world.computations.clear()
    answer = await world.resolver.verify(prefix, other_secret(token))
    assert reason(answer) is Reason.TOKEN_WRONG_SECRET
    assert answer.outcome.depends
    assert world.computations == []


async def test_two_tokens_with_one_prefix_never_share_a_result(world: World) -> None:
    prefix, token = await world.mint()
    wrong = other_secret(token)
    answers = await asyncio.gather(*(world.resolver.verify(prefix, t) for t in (wrong, token, wrong, token)))
    assert [reason(a) for a in answers] == [Reason.TOKEN_WRONG_SECRET, Reason.ALLOWED] * 2
    assert len(world.computations) == 2, "requests with the same token share one computation"


async def test_one_prefix_cannot_take_the_whole_queue(world: World) -> None:
    prefix, token = await world.mint()
    flood = [world.resolver.verify(prefix, other_secret(token)) for _ in range(20)]
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert sum(isinstance(a, AuthorityOverloaded) for a in answers) == 20 - PROOFS_PER_PREFIX
    assert len(world.computations) == PROOFS_PER_PREFIX
    assert reason(await world.resolver.verify(prefix, token)) is Reason.ALLOWED


async def test_a_proof_against_a_rotated_hash_is_not_used(world: World) -> None:
    prefix, token = await world.mint()
    successor = other_secret(token)
    stored = await world.hasher.hash(successor)
    gate = Gate(world.hasher)
    resolver = GrantResolver(world.grants, gate, tokens=TOKENS, cache_key=CACHE_KEY)
    pending = asyncio.create_task(resolver.verify(prefix, token), name="verify")
    await gate.entered.wait()
    world.grants.rotate(prefix, stored)
    gate.open.set()
    assert reason(await pending) is Reason.TOKEN_WRONG_SECRET
    assert reason(await world.resolver.verify(prefix, successor)) is Reason.ALLOWED


async def test_a_store_that_cannot_be_written_does_not_refuse_a_proven_token(world: World) -> None:
    prefix, token = await world.mint()
    world.grants.read_only = True
    answer = await world.resolver.verify(prefix, token)
    assert isinstance(answer.outcome, Grant)
    assert answer.outcome.digest == digest(CACHE_KEY, token.encode())


async def test_a_foreign_token_and_one_of_another_prefix_are_unknown(world: World) -> None:
    prefix, token = await world.mint()
    other_prefix, _ = await world.mint()
    for presented in ("", "x", "é", token[:-1] + "!", token + "0"):
        assert reason(await world.resolver.verify(prefix, presented)) is Reason.TOKEN_UNKNOWN
    assert reason(await world.resolver.verify(other_prefix, token)) is Reason.TOKEN_UNKNOWN
    _, (unknown,) = await world.resolver.resolve(["acme_pat_unknown00000"])
    assert isinstance(unknown, RefusedGrant) and unknown.reason is Reason.TOKEN_UNKNOWN
    assert world.computations == []


async def test_a_broken_store_is_an_error_not_a_refusal(world: World) -> None:
    prefix, token = await world.mint()
    world.grants.broken = True
    with pytest.raises(StoreUnavailable):
        await world.resolver.resolve([prefix])
    with pytest.raises(StoreUnavailable):
        await world.resolver.verify(prefix, token)


async def test_a_cancelled_caller_does_not_fail_others_that_wait_for_the_same_proof(world: World) -> None:
    prefix, token = await world.mint()
    gate = Gate(world.hasher)
    world.resolver.verifier = gate
    first, second = (asyncio.create_task(world.resolver.verify(prefix, token), name=f"waiter {n}") for n in range(2))
    await gate.entered.wait()
    await until(lambda: world.resolver._proofs and second.get_coro() is not None)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    gate.open.set()
    assert reason(await second) is Reason.ALLOWED
    assert len(world.computations) == 1


async def test_a_proof_continues_when_every_caller_was_cancelled(world: World) -> None:
    """Its place in the queue is freed when it ends, and not before."""
    prefix, token = await world.mint()
    gate = Gate(world.hasher)
    world.resolver.verifier = gate
    waiter = asyncio.create_task(world.resolver.verify(prefix, token), name="waiter")
    await gate.entered.wait()
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    assert world.resolver._by_prefix == {prefix: 1}
    gate.open.set()
    await until(lambda: not world.resolver._proofs)
    assert world.resolver._by_prefix == {}
    assert len(world.computations) == 1
