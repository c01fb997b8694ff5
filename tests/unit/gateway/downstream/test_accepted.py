"""Accepted sockets and their handover to the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from proxy.gateway.downstream.accepted import AcceptedSocket
from proxy.gateway.downstream.handover import Handover
from proxy.observe import defects
from proxy.observe.metrics import DEFECTS
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import Entrance, answering, get, response, serving


def accepted(peer: socket.socket) -> AcceptedSocket:
    """The accepted end of a connection that ``peer`` makes."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        peer.connect(bound.getsockname())
        fd, _ = bound._accept()  # type: ignore[attr-defined]
        return AcceptedSocket(int(bound.family), int(bound.type), socket.IPPROTO_TCP, fd)


def test_an_accepted_socket_and_its_duplicate_are_the_same_connection() -> None:
    with socket.socket() as peer, accepted(peer) as made, made.dup() as twin:
        assert (made.family, made.type, made.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        assert made.getpeername() == twin.getpeername() == peer.getsockname()
        assert not made.get_inheritable()
        twin.sendall(b"a")
        made.close()
        twin.sendall(b"b")
        twin.shutdown(socket.SHUT_WR)
        assert peer.makefile("rb").read() == b"ab"


Waiting = Callable[[Awaitable[None]], Awaitable[None]]


async def ended(waiting: Waiting, settle: Callable[[asyncio.Future[None]], object]) -> OSError | None:
    """Hand over by a coroutine that waits for a future, which ``settle`` ends; the error it ended with."""
    future = asyncio.get_running_loop().create_future()
    errors: asyncio.Queue[OSError | None] = asyncio.Queue()

    async def run() -> None:
        await waiting(future)

    Handover(run(), lambda _, error: errors.put_nowait(error)).advance()
    assert errors.empty()
    settle(future)
    return await errors.get()


async def passed_on(future: Awaitable[None]) -> None:
    await future


async def test_a_handover_ends_with_the_error_of_its_connection() -> None:
    assert await ended(passed_on, lambda future: future.set_result(None)) is None
    gone = ConnectionResetError("gone")
    assert await ended(passed_on, lambda future: future.set_exception(gone)) is gone


async def test_a_failed_handover_that_is_no_error_of_the_network_is_a_defect() -> None:
    def count() -> float:
        return sum(defects.snapshot().counters.get(DEFECTS.name, {}).values())

    before = count()
    assert await ended(passed_on, lambda future: future.set_exception(RuntimeError("broken"))) is None
    assert count() == before + 1


async def test_a_cancelled_handover_closes_its_connection() -> None:
    with socket.socket() as peer:
        made = accepted(peer)
        made.setblocking(False)
        ends: list[OSError | None] = []
        done = asyncio.Event()

        def over(_: Handover, error: OSError | None) -> None:
            ends.append(error)
            done.set()

        loop = asyncio.get_running_loop()
        handover = Handover(loop.connect_accepted_socket(asyncio.Protocol, made), over)
        handover.advance()
        handover.cancel()
        await asyncio.wait_for(done.wait(), HANGS_SECONDS)
        assert ends == [None]
        peer.setblocking(False)
        assert await loop.sock_recv(peer, 1) == b""


async def test_no_task_is_made_for_a_connection() -> None:
    async with serving(answering(response()), entrance=Entrance()) as (gateway, _):
        first = await gateway.client()
        assert (await first.ask(get("/open/a"))).status == 200
        made: list[str] = []
        loop = asyncio.get_running_loop()

        def factory(at: asyncio.AbstractEventLoop, run: object, **options: object) -> asyncio.Task[object]:
            made.append(str(options.get("name")))
            return asyncio.Task(run, loop=at, **options)  # type: ignore[arg-type]

        loop.set_task_factory(factory)  # type: ignore[arg-type]
        try:
            client = await gateway.client()
            assert (await client.ask(get("/open/a"))).status == 200
        finally:
            loop.set_task_factory(None)
        assert [name for name in made if "client" in name] == []


@pytest.mark.parametrize("trusted", [("127.0.0.0/8",), ()])
async def test_a_reload_changes_the_trust_in_peers_that_were_judged_before(trusted: tuple[str, ...]) -> None:
    async with (
        serving(answering(response()), trusted=trusted) as (gateway, _),
        serving(answering(response()), trusted=("192.0.2.0/24",)) as (other, _),
    ):
        for host, before in (("127.0.0.1", bool(trusted)), ("192.0.2.1", False)):
            assert [gateway.listener.trusts(host) for _ in range(2)] == [before] * 2
        gateway.listener.follow(other.listener)
        assert [gateway.listener.trusts(host) for host in ("127.0.0.1", "192.0.2.1")] == [False, True]


async def test_the_memory_of_judged_peers_is_bounded() -> None:
    async with serving(answering(response()), trusted=("10.0.0.0/16",)) as (gateway, _):
        for number in range(10_000):
            address = f"10.{number % 2}.{number // 256 % 256}.{number % 256}"
            assert gateway.listener.trusts(address) == (number % 2 == 0)
        assert len(gateway.listener._judged) <= 4096
