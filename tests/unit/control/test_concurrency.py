"""Concurrency limits: clients cannot raise the number of requests that run at once."""

from __future__ import annotations

import asyncio

import pytest

from proxy.control.concurrency import AT_ONCE, EACH, IDENTIFYING, WAITING, Turns
from proxy.core.errors import AuthorityOverloaded
from tests.unit.authority.waiting import until


class Busy:
    """Requests that run until they are released."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.running: list[str] = []
        self.free = asyncio.Event()

    async def request(self, who: str) -> None:
        async with self.turns.turn(who):
            self.running.append(who)
            await self.free.wait()

    async def identify(self) -> None:
        async with self.turns.identifying():
            self.running.append("")
            await self.free.wait()

    def send(self, who: str, count: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.request(who), name=f"{who} {number}") for number in range(count)]


async def test_requests_of_one_user_are_limited_and_others_run() -> None:
    busy = Busy(Turns())
    many = busy.send("a", EACH + WAITING)
    await until(lambda: len(busy.running) == EACH)
    with pytest.raises(AuthorityOverloaded):
        await busy.request("a")
    others = [task for who in "bcde" for task in busy.send(who, EACH)]
    await until(lambda: len(busy.running) == AT_ONCE)
    assert {who: busy.running.count(who) for who in "abcd"} == dict.fromkeys("abcd", EACH)
    many[0].cancel()
    many[-1].cancel()
    busy.free.set()
    await asyncio.gather(*many, *others, return_exceptions=True)
    assert len(busy.running) == EACH + WAITING - 1 + 4 * EACH
    assert len(busy.turns) == 0


async def test_few_requests_are_authenticated_at_once() -> None:
    busy = Busy(Turns())
    identifications = [
        asyncio.create_task(busy.identify(), name=f"identify {number}") for number in range(3 * IDENTIFYING)
    ]
    await until(lambda: len(busy.running) == IDENTIFYING)
    await asyncio.sleep(0)
    assert len(busy.running) == IDENTIFYING
    busy.free.set()
    await asyncio.gather(*identifications)
