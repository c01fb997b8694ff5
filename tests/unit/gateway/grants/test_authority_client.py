"""The client of the authority: it reconnects, answers lookups, and applies changes in their order or fetches them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tempfile
from pathlib import Path

import pytest

from proxy.core.errors import AuthorityUnavailable
from proxy.core.ipc.wire import PREFIXES_AT_ONCE, Message, frame
from proxy.core.kinds import Kind
from proxy.core.model import RefusedGrant
from proxy.core.reasons import Reason
from proxy.gateway.grants.authority_client import AuthorityLink
from proxy.gateway.process.worker import loop_factory as loop_factory_of_workers
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import TOKENS, make_cache, make_grant, until
from tests.unit.gateway.phases.test_authenticate import world
from tests.unit.gateway.scripted import Authority, authority_at


async def test_the_greeting_identifies_the_worker_and_returns_the_key() -> None:
    async with world() as w:
        (hello,) = w.authority.messages
        assert (hello["op"], hello["worker"], hello["applied"]) == ("hello", 3, 0)
        assert w.link.up
        assert w.link.cache_key == w.authority.cache_key
        assert w.cache.applied == 0


async def test_the_link_waits_for_an_authority_that_has_not_started() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "link.sock"
        link = AuthorityLink(path, slot=0, cache=make_cache())
        link.start()
        try:
            await asyncio.sleep(0.12)
            assert not link.up
            with pytest.raises(AuthorityUnavailable):
                await link.lookup("acme_pat_000000000000")
            async with authority_at(path):
                await until(lambda: link.up)
        finally:
            await link.close()


async def test_an_authority_that_hangs_up_during_the_greeting_is_greeted_again_at_once() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "link.sock"
        async with authority_at(path) as authority:

            def hang_up(message: Message) -> Message | None:
                if authority.asked["hello"] < 3:
                    authority.hang_up()
                    return None
                return authority.usual(message)

            authority.answers["hello"] = hang_up
            states: list[bool] = []
            link = AuthorityLink(path, slot=0, cache=make_cache(), on_state=states.append)
            link.start()
            try:
                await until(lambda: states[-1:] == [True])
            finally:
                await link.close()


async def test_after_a_break_missed_changes_are_fetched() -> None:
    async with world() as w:
        minted = w.known()
        assert await w.bearer(minted.token) is None
        await w.authority.stop()
        await until(lambda: w.states[-1] is False)
        w.commit(f"token:{minted.token_id}")
        await w.authority.start()
        await until(lambda: w.states[-1])
        assert w.cache.applied == 1
        assert minted.prefix not in w.cache.entries


async def test_an_authority_with_another_key_voids_every_grant() -> None:
    async with world() as w:
        minted = w.known()
        assert await w.bearer(minted.token) is None
        await w.authority.stop()
        w.authority.cache_key = b"another key".ljust(32)
        w.authority.grants[minted.prefix] = make_grant(minted, cache_key=w.authority.cache_key)
        await w.authority.start()
        await until(lambda: w.states[-1] and w.link.cache_key == w.authority.cache_key)
        assert len(w.cache) == 0
        assert await w.bearer(minted.token) is None


async def test_pushed_changes_are_applied_in_their_order() -> None:
    async with world() as w:
        one, two = w.known(), w.known()
        assert await w.bearer(one.token) is None
        assert await w.bearer(two.token) is None
        keys = [f"token:{one.token_id}"]
        w.authority.change(*keys)
        w.authority.push({"push": "changes", "since": 0, "epoch": 1, "keys": keys})
        await until(lambda: w.cache.applied == 1)
        assert set(w.cache.entries) == {two.prefix}
        assert w.authority.asked["changes"] == 0


async def test_a_push_behind_a_gap_is_not_applied_but_fetched() -> None:
    async with world() as w:
        one, two = w.known(), w.known()
        assert await w.bearer(one.token) is None
        assert await w.bearer(two.token) is None
        w.authority.change(f"token:{one.token_id}")
        w.authority.change(f"token:{two.token_id}")
        w.authority.push({"push": "changes", "since": 1, "epoch": 2, "keys": [f"token:{two.token_id}"]})
        await until(lambda: w.cache.applied == 2)
        assert not w.cache.entries
        assert w.authority.asked["changes"] == 1


async def test_a_caller_that_gives_up_waiting_for_changes_cancels_no_other_request() -> None:
    """A forward-auth caller gives up after a second. By then another request for changes may be in progress."""
    async with world() as w:
        answers: list[asyncio.Future[Message]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
        waiting = iter(answers)
        w.authority.answers["changes"] = lambda _: next(waiting)
        w.authority.change("token:x")
        first = asyncio.create_task(w.link.sync(1))
        await until(lambda: w.authority.asked["changes"] == 1)

        async def again() -> None:
            """Hears of the failure before the impatient one does, and asks another question."""
            with pytest.raises(AuthorityUnavailable):
                await w.link.sync(1)
            await w.link.sync(1)

        later = asyncio.create_task(again())
        await asyncio.sleep(0)
        impatient = asyncio.create_task(w.link.sync(1))
        await asyncio.sleep(0)
        answers[0].set_result({"error": "unavailable"})
        await until(lambda: w.authority.asked["changes"] == 2)
        impatient.cancel()
        with pytest.raises(AuthorityUnavailable):
            await first
        with pytest.raises(AuthorityUnavailable):
            await impatient
        answers[1].set_result({"epoch": 1, "keys": ["token:x"], "reset": False})
        await later
        assert w.cache.applied == 1


async def test_a_push_of_the_past_changes_nothing() -> None:
    async with world() as w:
        minted = w.known()
        w.commit("token:x")
        w.commit("token:y")
        assert await w.bearer(minted.token) is None
        assert w.cache.applied == 2
        w.authority.push({"push": "changes", "since": 0, "epoch": 1, "keys": [f"token:{minted.token_id}"]})
        w.commit("token:z")
        w.authority.push({"push": "changes", "since": 2, "epoch": 3, "keys": ["token:z"]})
        await until(lambda: w.cache.applied == 3)
        assert minted.prefix in w.cache.entries


async def test_a_reset_drops_everything() -> None:
    async with world() as w:
        minted = w.known()
        assert await w.bearer(minted.token) is None
        w.authority.answers["changes"] = lambda message: {"epoch": w.authority.epoch, "keys": [], "reset": True}
        w.commit("token:x")
        w.authority.grants[minted.prefix] = RefusedGrant(prefix=minted.prefix, reason=Reason.TOKEN_REVOKED, depends=())
        assert await w.bearer(minted.token) is Reason.TOKEN_REVOKED


async def test_an_answer_belongs_to_the_request_with_its_number() -> None:
    """Answers may arrive in any order, and one that no caller waits for is dropped."""
    async with world() as w:
        minted = [w.known() for _ in range(8)]
        release = asyncio.Event()

        async def late(message: Message) -> Message:
            if message["prefix"] == minted[0].prefix:
                await release.wait()
            return {"as_of": 0, **w.authority.found(message["prefix"])}

        w.authority.answers["verify"] = late
        first = asyncio.create_task(w.link.verify(minted[0].prefix, minted[0].token), name="first")
        for one in minted[1:]:
            answer = await w.link.verify(one.prefix, one.token)
            assert answer.found == w.authority.grants[one.prefix]
        w.authority.push({"id": 999_999, "as_of": 0})
        release.set()
        assert (await first).found == w.authority.grants[minted[0].prefix]


async def test_waiting_prefixes_share_a_request_and_each_gets_its_own_answer() -> None:
    async with world() as w:
        minted = [w.known() for _ in range(PREFIXES_AT_ONCE + 8)]
        for one in minted:
            w.authority.grants[one.prefix] = make_grant(one, token_name=one.token_id)
        answers = await asyncio.gather(*(w.link.lookup(one.prefix) for one in minted * 2))
        assert [answer.found for answer in answers] == [w.authority.grants[one.prefix] for one in minted] * 2
        questions = [message["prefixes"] for message in w.authority.messages if message["op"] == "resolve"]
        assert questions == [[one.prefix for one in minted[:-8]], [one.prefix for one in minted[-8:]]]


async def test_prefixes_that_an_answer_leaves_out_are_requested_again() -> None:
    async with world() as w:
        minted = [w.known() for _ in range(5)]

        def short(message: Message) -> Message:
            return w.authority.resolved({"prefixes": message["prefixes"][:2]})

        w.authority.answers["resolve"] = short
        verdicts = await asyncio.gather(*(w.bearer(one.token) for one in minted))
        assert (verdicts, w.authority.asked["resolve"]) == ([None] * 5, 3)


async def test_an_unreadable_answer_fails_only_its_own_prefix() -> None:
    async with world() as w:
        good, bad = w.known(), w.known()
        w.authority.answers["resolve"] = lambda message: {
            "as_of": 0,
            "found": [{} if prefix == bad.prefix else w.authority.found(prefix) for prefix in message["prefixes"]],
        }
        verdicts = await asyncio.gather(*(w.bearer(one.token) for one in (bad, good)))
        assert verdicts == [Reason.AUTHORITY_UNAVAILABLE, None]
        assert w.authority.asked["resolve"] == 1


async def test_a_caller_that_is_cancelled_leaves_the_others_their_answer() -> None:
    async with world() as w:
        minted = w.known()
        release = asyncio.Event()

        async def late(message: Message) -> Message:
            await release.wait()
            return w.authority.resolved(message)

        w.authority.answers["resolve"] = late
        waiting = [asyncio.create_task(w.link.lookup(minted.prefix), name="waiting") for _ in range(3)]
        await until(lambda: w.authority.asked["resolve"])
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        late_comer = asyncio.create_task(w.link.lookup(minted.prefix), name="late")
        release.set()
        answers = await asyncio.gather(*waiting[1:], late_comer)
        assert [answer.found for answer in answers] == [w.authority.grants[minted.prefix]] * 3
        assert waiting[0].cancelled()
        assert w.authority.asked["resolve"] == 1


@pytest.mark.parametrize("noise", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\1{", b"\0\0\0\2{}"])
async def test_noise_on_the_link_ends_the_connection_and_a_new_one_follows(noise: bytes) -> None:
    async with world() as w:
        w.authority.send(noise)
        await until(lambda: w.states == [True, False, True])
        assert await w.bearer(w.known().token) is None


async def test_counters_are_sent_while_the_link_is_up_and_never_kept() -> None:
    async with world() as w:
        w.link.send_counters({"counters": {}})
        await until(lambda: w.authority.asked["counters"])
        await w.authority.stop()
        await until(lambda: w.states[-1] is False)
        w.link.send_counters({"counters": {}})
        assert w.authority.asked["counters"] == 1


async def test_counters_do_not_pile_up_before_an_authority_that_does_not_read() -> None:
    async with world() as w:
        snapshot = {"counters": {"x" * 100_000: [1]}}
        for _ in range(500):  # without a turn of the event loop between them
            w.link.send_counters(snapshot)
        # What was taken comes before the question.
        assert await w.bearer(w.known().token) is None
        assert 1 <= w.authority.asked["counters"] < 100


async def test_closing_fails_requests_in_progress() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with authority_at(Path(directory) / "link.sock") as authority:
            link = await linked(authority)
            authority.answers["resolve"] = lambda message: None
            asking = asyncio.create_task(link.lookup("acme_pat_000000000000"), name="question")
            await until(lambda: authority.asked["resolve"])
            await link.close()
            with pytest.raises((AuthorityUnavailable, asyncio.CancelledError)):
                await asking


async def linked(authority: Authority) -> AuthorityLink:
    link = AuthorityLink(authority.path, slot=0, cache=make_cache())
    link.start()
    await until(lambda: link.up)
    return link


async def test_a_flood_of_unknown_tokens_delays_no_token_that_was_good_until_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2,000 well-formed unknown tokens, and an authority that answers slowly."""
    # The answers come when the test says so, however long a busy machine needs until then.
    defaults = AuthorityLink._ask.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "seconds", HANGS_SECONDS)
    async with world() as w:
        good = [w.known() for _ in range(3)]
        for one in good:
            assert await w.bearer(one.token) is None
        answer_strangers = asyncio.Event()

        async def slow_for_strangers(message: Message) -> Message:
            if any(prefix not in w.authority.grants for prefix in message["prefixes"]):
                await answer_strangers.wait()
            return w.authority.resolved(message)

        w.authority.answers["resolve"] = slow_for_strangers
        strangers = [TOKENS.mint(Kind.PAT) for _ in range(2000)]
        flood = [asyncio.create_task(w.bearer(one.token), name="stranger") for one in strangers]
        await until(lambda: len(w.authority.messages[-1].get("prefixes", ())) == PREFIXES_AT_ONCE)
        asked = w.authority.asked["changes"]
        for one in good:
            w.commit(f"token:{one.token_id}")
            assert await asyncio.wait_for(w.bearer(one.token), HANGS_SECONDS) is None
        w.commit("user:usr1")
        verdicts = await asyncio.wait_for(asyncio.gather(*(w.bearer(one.token) for one in good)), HANGS_SECONDS)
        assert verdicts == [None, None, None]
        assert w.authority.asked["changes"] > asked
        assert not answer_strangers.is_set()
        answer_strangers.set()
        answers = await asyncio.gather(*flood)
        assert set(answers) == {Reason.TOKEN_UNKNOWN, Reason.OVERLOADED}
        assert answers.count(Reason.TOKEN_UNKNOWN) >= 1024


async def test_a_token_that_was_refused_after_a_change_has_no_priority_any_more() -> None:
    async with world() as w:
        minted = w.known()
        assert await w.bearer(minted.token) is None
        assert not w.cache.good_lately(minted.prefix)
        w.authority.grants[minted.prefix] = RefusedGrant(prefix=minted.prefix, reason=Reason.TOKEN_REVOKED, depends=())
        w.commit(f"token:{minted.token_id}")
        await w.link.sync(1)
        assert w.cache.good_lately(minted.prefix)
        assert await w.bearer(minted.token) is Reason.TOKEN_REVOKED
        assert not w.cache.good_lately(minted.prefix)


async def test_changes_are_fetched_however_many_requests_wait() -> None:
    async with world() as w:
        good, unverified = w.known(), w.known(verified=False)
        assert await w.bearer(good.token) is None
        w.authority.answers["verify"] = lambda message: None
        waiting = [
            asyncio.create_task(w.link.verify(unverified.prefix, unverified.token), name="verify") for _ in range(1024)
        ]
        await until(lambda: w.authority.asked["verify"] == 1024)
        w.commit("token:another")
        assert await asyncio.wait_for(w.bearer(good.token), HANGS_SECONDS) is None
        assert w.authority.asked["changes"] == 1
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_caller_that_waits_for_changes_continues_when_a_push_brings_them() -> None:
    async with world() as w:
        minted = w.known()
        assert await w.bearer(minted.token) is None
        w.authority.answers["changes"] = lambda message: None
        w.commit("token:one")
        waiting = asyncio.create_task(w.bearer(minted.token), name="waiting")
        await until(lambda: w.authority.asked["changes"])
        w.commit("token:two")
        later = asyncio.create_task(w.bearer(minted.token), name="later")
        await asyncio.sleep(0.02)
        w.authority.push({"push": "changes", "since": 0, "epoch": 1, "keys": ["token:one"]})
        assert await asyncio.wait_for(waiting, HANGS_SECONDS) is None
        assert not later.done()
        w.authority.push({"push": "changes", "since": 1, "epoch": 2, "keys": ["token:two"]})
        assert await asyncio.wait_for(later, HANGS_SECONDS) is None
        assert w.authority.asked["changes"] == 1


def test_an_authority_that_dies_at_any_moment_is_unavailable_and_nothing_else_on_either_event_loop() -> None:
    """Uvloop's transports raise RuntimeError as soon as they are closed, before the stream knows of it."""
    failures: list[str] = []
    for loop_factory in (asyncio.new_event_loop, loop_factory_of_workers()):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: failures.append(str(context)))
            answered = runner.run(_asking_while_it_dies())
        gc.collect()
        assert failures == []
        assert answered > 50


async def _asking_while_it_dies() -> int:
    """Send requests and reports to an authority that hangs up 100 times; returns how many were answered."""
    answered = 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "link.sock"
        async with authority_at(path) as authority:
            link = AuthorityLink(path, slot=0, cache=make_cache())
            link.start()
            over = False

            async def ask(number: int) -> None:
                nonlocal answered
                while not over:
                    with contextlib.suppress(AuthorityUnavailable):
                        await link.lookup(f"acme_pat_{number:012d}")
                        answered += 1
                    link.report(frame({"op": "counters", "snapshot": {}}))
                    await asyncio.sleep(0)

            async with asyncio.TaskGroup() as asking:
                for number in range(20):
                    asking.create_task(ask(number))
                for _ in range(100):
                    await until(lambda: link.up)
                    authority.hang_up()
                    await asyncio.sleep(0)
                    await link.flush(1.0)
                over = True
            await until(lambda: link.up)
            assert (await link.lookup("acme_pat_000000000000")).found.prefix == "acme_pat_000000000000"
            await link.close()
    return answered


async def test_a_push_before_the_greeting_is_ignored() -> None:
    """Before the greeting a worker has no key and no epoch: both come with the answer."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "link.sock"
        async with authority_at(path) as authority:
            authority.change("user:usr1")

            def early(message: Message) -> Message | None:
                for since in (0, 5):
                    authority.push({"push": "changes", "since": since, "epoch": 7, "keys": ["user:usr1"]})
                return authority.usual(message)

            authority.answers["hello"] = early
            cache = make_cache()
            link = AuthorityLink(path, slot=0, cache=cache)
            link.start()
            try:
                await until(lambda: link.up)
                await link.lookup("acme_pat_000000000000")
                assert cache.applied == 1
                assert authority.asked["changes"] == 0
            finally:
                await link.close()
