"""Every lookup ends, however its request to the authority ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

import pytest

from proxy.core.errors import AuthorityOverloaded, AuthorityUnavailable
from proxy.core.model import RefusedGrant
from proxy.core.reasons import Reason
from proxy.gateway.grants.lookup_queue import LookupAnswer, LookupQueue, Outcome
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import until


def kept() -> int:
    """How many futures any dictionary keeps."""
    gc.collect()  # those of other tests that nothing keeps
    return sum(type(key) is asyncio.Future for each in gc.get_objects() if type(each) is dict for key in each)


def unknown(prefix: str) -> LookupAnswer:
    return LookupAnswer(1, RefusedGrant(prefix=prefix, reason=Reason.TOKEN_UNKNOWN, depends=()))


async def test_closing_before_the_request_is_sent_ends_the_lookup() -> None:
    asked: list[list[str]] = []

    async def ask(prefixes: list[str]) -> Sequence[Outcome]:
        asked.append(prefixes)
        return [unknown(prefix) for prefix in prefixes]

    queue = LookupQueue(ask)
    asking = asyncio.create_task(queue.answer("one"), name="asking")
    await asyncio.sleep(0)
    await queue.close()
    with pytest.raises(AuthorityUnavailable):
        await asyncio.wait_for(asking, HANGS_SECONDS)
    assert (asked, len(queue)) == ([], 0)
    assert (await queue.answer("two")).found.prefix == "two"


async def test_a_failed_request_fails_its_own_prefixes_and_the_others_are_requested_next() -> None:
    asked: list[list[str]] = []
    release = asyncio.Event()

    async def ask(prefixes: list[str]) -> Sequence[Outcome]:
        asked.append(prefixes)
        if len(asked) == 1:
            await release.wait()
            return [AuthorityOverloaded("full")] * len(prefixes)
        return [unknown(prefix) for prefix in prefixes]

    queue = LookupQueue(ask)
    first = [asyncio.create_task(queue.answer("one"), name="first") for _ in range(2)]
    await until(lambda: asked)
    second = asyncio.create_task(queue.answer("two"), name="second")
    await asyncio.sleep(0)
    release.set()
    failures = await asyncio.gather(*first, return_exceptions=True)
    assert [type(failure) for failure in failures] == [AuthorityOverloaded] * 2
    assert failures[0] is not failures[1]
    assert (await second).found.prefix == "two"
    assert asked == [["one"], ["two"]]


async def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    never = asyncio.Event()

    async def ask(prefixes: list[str]) -> Sequence[Outcome]:
        await never.wait()
        return [unknown(prefix) for prefix in prefixes]

    before = kept()
    queue = LookupQueue(ask)
    staying = asyncio.create_task(queue.answer("one"), name="staying")
    await asyncio.sleep(0)
    for _ in range(3):
        leaving = [asyncio.create_task(queue.answer(prefix), name="leaving") for prefix in ("one", "two")]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
    assert (len(queue), kept()) == (1, before + 1)
    never.set()
    assert (await staying).found.prefix == "one"


async def test_a_caller_that_is_cancelled_does_not_affect_others_with_the_same_prefix() -> None:
    release = asyncio.Event()

    async def ask(prefixes: list[str]) -> Sequence[Outcome]:
        await release.wait()
        return [unknown(prefix) for prefix in prefixes]

    queue = LookupQueue(ask)
    first, second = (asyncio.create_task(queue.answer("one"), name=f"waiter {number}") for number in range(2))
    third = asyncio.create_task(queue.answer("two"), name="behind")
    await until(lambda: len(queue) == 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    release.set()
    answers = await asyncio.wait_for(asyncio.gather(second, third), HANGS_SECONDS)
    assert [answer.found.prefix for answer in answers] == ["one", "two"]
    assert len(queue) == 0


async def test_prefixes_that_an_answer_leaves_out_are_requested_again_in_their_place() -> None:
    asked: list[list[str]] = []

    async def ask(prefixes: list[str]) -> Sequence[Outcome]:
        asked.append(prefixes)
        return [unknown(prefixes[0])]

    queue = LookupQueue(ask)
    answers = await asyncio.wait_for(
        asyncio.gather(*(queue.answer(prefix) for prefix in ("a", "b", "c", "a"))), HANGS_SECONDS
    )
    assert [answer.found.prefix for answer in answers] == ["a", "b", "c", "a"]
    assert asked == [["a", "b", "c"], ["b", "c"], ["c"]]


async def test_however_the_queue_ends_no_caller_waits_for_ever() -> None:
    async def ask(prefixes: list[str]) -> Sequence[Outcome]:
        asyncio.current_task().cancel()  # type: ignore[union-attr]  # as when the worker ends
        await asyncio.sleep(0)
        return []

    queue = LookupQueue(ask)
    with pytest.raises(AuthorityUnavailable):
        await asyncio.wait_for(queue.answer("one"), HANGS_SECONDS)
    assert len(queue) == 0
