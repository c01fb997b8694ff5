"""Argon2id runs in a bounded thread pool, and calls beyond the bound are refused at once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator

import argon2
import pytest

from proxy.authority.grants.argon2_hasher import Argon2Hasher, HashParameters
from proxy.core.errors import AuthorityOverloaded
from proxy.observe.metrics import HashOutcome
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.waiting import until

CHEAP = HashParameters(time_cost=1, memory_kib=64, parallelism=1)


def _hasher(outcomes: Counter[HashOutcome], *, threads: int = 2, queue: int = 64) -> Argon2Hasher:
    return Argon2Hasher(CHEAP, threads=threads, queue=queue, counted=lambda outcome: outcomes.update([outcome]))


async def test_a_secret_matches_its_own_hash_only() -> None:
    outcomes: Counter[HashOutcome] = Counter()
    hasher = _hasher(outcomes)
    encoded = await hasher.hash("one")
    assert encoded.startswith("$argon2id$v=19$m=64,t=1,p=1$")
    assert await hasher.verify(encoded, "one")
    assert not await hasher.verify(encoded, "two")
    assert not await hasher.verify("not a hash", "one")
    assert outcomes == {HashOutcome.HASHED: 1, HashOutcome.MATCHED: 1, HashOutcome.MISMATCHED: 2}
    hasher.close()


async def test_hashing_beyond_threads_and_queue_is_refused_at_once_and_recovers() -> None:
    outcomes: Counter[HashOutcome] = Counter()
    hasher = _hasher(outcomes, threads=1, queue=2)
    results = await asyncio.gather(*(hasher.hash(str(n)) for n in range(10)), return_exceptions=True)
    assert sum(isinstance(r, AuthorityOverloaded) for r in results) == 7
    assert sum(isinstance(r, str) for r in results) == 3
    assert outcomes[HashOutcome.OVERLOADED] == 7
    assert hasher.pending == 0
    assert await hasher.hash("again")
    hasher.close()


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event for which each computation waits in its thread."""
    event, compute = threading.Event(), argon2.PasswordHasher.hash

    def late(self: argon2.PasswordHasher, password: str) -> str:
        assert event.wait(HANGS_SECONDS), "nobody released the thread"
        return compute(self, password)

    monkeypatch.setattr(argon2.PasswordHasher, "hash", late)
    yield event
    event.set()


async def test_a_cancelled_caller_does_not_free_its_place_before_its_thread(release: threading.Event) -> None:
    hasher = Argon2Hasher(CHEAP, threads=1, queue=0, counted=lambda _: None)
    waiter = asyncio.create_task(hasher.hash("one"), name="waiter")
    await until(lambda: hasher.pending)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    with pytest.raises(AuthorityOverloaded):
        await hasher.hash("two")
    release.set()
    await until(lambda: not hasher.pending)
    assert await hasher.hash("three")
    hasher.close()


async def test_hashing_does_not_block_the_event_loop(release: threading.Event) -> None:
    """The computation ends only when the event loop, which turns meanwhile, releases its thread."""
    hasher = Argon2Hasher(CHEAP, counted=lambda _: None)
    work = asyncio.create_task(hasher.hash("one"), name="work")
    for _ in range(10):
        await asyncio.sleep(0)
    assert hasher.pending and not work.done()
    release.set()
    assert (await work).startswith("$argon2id$")
    hasher.close()
