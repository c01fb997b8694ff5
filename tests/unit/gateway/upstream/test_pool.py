"""Upstreams with several servers: no request fails while at least one server accepts connections."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from proxy.gateway.upstream.pool import Server
from tests.support.process import HANGS_SECONDS
from tests.unit.gateway.kit import (
    HOST,
    Backend,
    BackendConnection,
    Gateway,
    Handler,
    answering,
    field_lines,
    get,
    response,
    serving,
    task_runs,
    until,
)
from tests.unit.gateway.phases.test_revalidate import UPGRADE, echo_tunnel
from tests.unit.gateway.ports import full_backlog, gateway_to


@contextmanager
def refusing() -> Iterator[socket.socket]:
    """A reserved port that refuses connections until the test listens on it."""
    with socket.socket() as held:
        held.bind((HOST, 0))
        yield held


@asynccontextmanager
async def backend(handler: Handler, sock: socket.socket | None = None) -> AsyncIterator[Backend]:
    one = Backend(handler)
    await one.start(sock)
    try:
        yield one
    finally:
        await one.close()


def port_of(held: socket.socket) -> int:
    port: int = held.getsockname()[1]
    return port


def server_at(gateway: Gateway, port: int) -> Server:
    (found,) = [server for server in gateway.pipeline.upstreams.pool("app").servers if server.name.endswith(f":{port}")]
    return found


def asked_host(head: bytes) -> bytes:
    (host,) = field_lines(head, "host")
    return response(host)


async def echo_body(connection: BackendConnection) -> None:
    while True:
        (length,) = field_lines(await connection.request(), "content-length")
        await connection.send(response(await connection.exactly(int(length))))


async def test_a_refusing_server_beside_a_working_one_fails_no_request() -> None:
    with refusing() as held:
        async with backend(answering(response(b"here"))) as other, gateway_to(port_of(held), other.port) as gateway:
            begun = time.monotonic()
            for _ in range(20):
                client = await gateway.client()
                assert (await client.ask(get("/open/a"))).body == b"here"
                assert (await client.ask(get("/open/a", method="DELETE"))).status == 200
            # It was tried once and then avoided for a second, and twice as long after each further failure.
            assert 1 <= server_at(gateway, port_of(held))._failures <= 1 + time.monotonic() - begun
            assert gateway.active == 0


async def test_a_request_with_a_body_reaches_the_other_server_completely() -> None:
    with refusing() as held:
        async with backend(echo_body) as other, gateway_to(port_of(held), other.port) as gateway:
            for _ in range(4):
                client = await gateway.client()
                head = b"POST /open/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 200000\r\n\r\n"
                client.send(head + b"x" * 100_000)
                await asyncio.sleep(0)
                client.send(b"y" * 100_000)
                assert (await client.answer()).body == b"x" * 100_000 + b"y" * 100_000


async def test_a_server_that_recovers_is_used_again() -> None:
    with refusing() as held:
        async with backend(answering(response(b"old"))) as other, gateway_to(port_of(held), other.port) as gateway:
            client = await gateway.client()
            begun = time.monotonic()
            for _ in range(2):
                assert (await client.ask(get("/open/a"))).body == b"old"
            assert server_at(gateway, port_of(held)).down(begun), "it was tried, and has refused"
            async with backend(answering(response(b"new")), held):
                answers = set()
                async with asyncio.timeout(HANGS_SECONDS):
                    while b"new" not in answers:
                        answers.add((await client.ask(get("/open/a"))).body)
                        await asyncio.sleep(0.02)
                assert not server_at(gateway, port_of(held)).down(time.monotonic())
                assert {(await client.ask(get("/open/a"))).body for _ in range(4)} == {b"old", b"new"}


async def test_all_servers_refusing_is_a_502_and_the_first_to_recover_is_found_at_once() -> None:
    with refusing() as one, refusing() as two:
        async with gateway_to(port_of(one), port_of(two)) as gateway:
            client = await gateway.client()
            for _ in range(3):
                answer = await client.ask(get("/open/a"))
                assert (answer.status, answer.reason) == (502, "upstream_refused")
            async with backend(answering(response(b"up")), two):
                for _ in range(3):
                    assert (await client.ask(get("/open/a"))).body == b"up"
            assert gateway.active == 0


async def test_simultaneous_failures_count_as_one() -> None:
    """Requests during a server's restart must not keep it down for half a minute."""
    with refusing() as held:
        async with backend(answering(response())) as other, gateway_to(port_of(held), other.port) as gateway:
            clients = [await gateway.client() for _ in range(40)]
            begun = time.monotonic()
            answers = await asyncio.gather(*(client.ask(get("/open/a")) for client in clients))
            assert {answer.status for answer in answers} == {200}
            # It may be tried again after a second, which only a machine that is too busy takes for all of them.
            assert 1 <= server_at(gateway, port_of(held))._failures <= 1 + time.monotonic() - begun


async def test_failures_while_a_server_is_down_do_not_keep_it_down_longer() -> None:
    with refusing() as one, refusing() as two:
        async with gateway_to(port_of(one), port_of(two)) as gateway:
            client = await gateway.client()
            begun = time.monotonic()
            for _ in range(10):
                assert (await client.ask(get("/open/a"))).status == 502
            for held in (one, two):
                # A second failure counts a second after the first one, a third two seconds after that.
                assert 1 <= server_at(gateway, port_of(held))._failures <= 1 + time.monotonic() - begun


class Later:
    """A monotonic clock that can be put forward."""

    def __init__(self) -> None:
        self._clock, self._ahead = time.monotonic, 0.0

    def __call__(self) -> float:
        return self._clock() + self._ahead

    def wait(self, seconds: float) -> None:
        self._ahead += seconds


async def test_a_server_that_keeps_failing_is_tried_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Later()
    with refusing() as held:
        async with gateway_to(port_of(held)) as gateway:
            server = server_at(gateway, port_of(held))
            gateway.stop_sweeping()
            monkeypatch.setattr(time, "monotonic", clock)
            pauses = []
            for _ in range(8):
                with pytest.raises(OSError):
                    await server.connect()
                now = time.monotonic()
                pauses.append(next(pause for pause in range(100) if not server.down(now + pause)))
                clock.wait(pauses[-1])
            assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]


async def test_a_connect_timeout_moves_the_request_to_another_server() -> None:
    with full_backlog() as port:
        async with (
            backend(answering(response(b"here"))) as other,
            gateway_to(port, other.port, connect_timeout=1.0) as gateway,
        ):
            client = await gateway.client()
            begun = time.monotonic()
            for _ in range(6):
                assert (await client.ask(get("/open/a"))).body == b"here"
            now, server = time.monotonic(), server_at(gateway, port)
            assert server.down(begun), "the connection has failed"
            assert not server.down(now + 2 ** (now - begun)), "and has not been tried for each request"


async def test_connect_timeouts_of_all_servers_are_a_504() -> None:
    with full_backlog() as one, full_backlog() as two:
        async with gateway_to(one, two, connect_timeout=0.1) as gateway:
            client = await gateway.client()
            answer = await client.ask(get("/open/a"))
            assert (answer.status, answer.reason) == (504, "upstream_connect_timeout")


async def test_a_websocket_goes_to_the_server_that_accepts() -> None:
    with refusing() as held:
        async with backend(echo_tunnel) as other, gateway_to(port_of(held), other.port) as gateway:
            for _ in range(4):
                client = await gateway.client()
                client.send(get("/open/ws", *UPGRADE) + b"\x81\x05hello")
                await client.reader.readuntil(b"\r\n\r\n")
                assert await client.reader.readexactly(7) == b"\x81\x05hello"
            assert len(other.connections) == 4


async def test_a_client_that_disconnects_while_servers_are_tried_leaves_nothing_open() -> None:
    with full_backlog() as port, refusing() as held:
        async with gateway_to(port, port_of(held), connect_timeout=0.2) as gateway:
            client = await gateway.client()
            client.send(get("/open/a"))
            await until(lambda: gateway.listener.connections)
            client.reset()
            await until(lambda: not task_runs("upstream connect") and not gateway.listener.connections)
            assert gateway.active == gateway.idle == 0


async def test_each_server_gets_its_own_host_where_the_clients_is_not_preserved() -> None:
    async with (
        backend(answering(asked_host)) as one,
        backend(answering(asked_host)) as two,
        gateway_to(one.port, two.port, preserve_host=False) as gateway,
    ):
        client = await gateway.client()
        for _ in range(6):
            await client.ask(get("/open/a"))
        for server in (one, two):
            assert server.connections
            head = server.connections[0].head
            assert field_lines(head, "host") == [f"{HOST}:{server.port}".encode()]
            assert field_lines(head, "x-forwarded-host") == [b"gateway"]


async def test_after_a_failover_the_host_is_that_of_the_new_server() -> None:
    with refusing() as held:
        async with (
            backend(answering(asked_host)) as other,
            gateway_to(port_of(held), other.port, preserve_host=False) as gateway,
        ):
            client = await gateway.client()
            for _ in range(4):
                assert (await client.ask(get("/open/a"))).body == f"{HOST}:{other.port}".encode()


async def test_after_a_retry_the_host_is_that_of_the_new_server() -> None:
    """A server dies with a request on its idle connection; the retry cannot reach it and goes to the other one."""
    answered, gone = asyncio.Event(), asyncio.Event()

    async def dying(connection: BackendConnection) -> None:
        await connection.request()
        answered.set()
        await connection.send(response(b"dying"))
        await connection.request()
        one.refuse()
        gone.set()

    async with (
        backend(dying) as one,
        backend(answering(asked_host)) as two,
        gateway_to(one.port, two.port, preserve_host=False) as gateway,
    ):
        client = await gateway.client()
        async with asyncio.timeout(HANGS_SECONDS):
            while not answered.is_set():
                await client.ask(get("/open/a"))
            while not gone.is_set():
                answer = await client.ask(get("/open/a"))
                assert answer.body == f"{HOST}:{two.port}".encode()


async def test_the_host_of_a_single_server_survives_its_retry() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.send(asked_host(await connection.request()))
        if connection.number == 0:
            await connection.request()
        else:
            await connection.gone()

    async with serving(handle, preserve_host=False) as (gateway, backend):
        client = await gateway.client()
        for _ in range(2):
            assert (await client.ask(get("/open/a"))).body == f"{HOST}:{backend.port}".encode()
        assert len(backend.connections) == 2


async def test_a_server_that_never_accepts_does_not_attract_all_requests() -> None:
    """It has no open exchanges and would look least busy; after a failure only one request at a time tries it."""
    release = asyncio.Event()

    async def slow(connection: BackendConnection) -> None:
        while True:
            await connection.request()
            await release.wait()
            await connection.send(response())

    with full_backlog() as port:
        async with backend(slow) as good, gateway_to(port, good.port, connect_timeout=3.0) as gateway:
            (hole, _) = gateway.pipeline.upstreams.pool("app").servers
            clients = [await gateway.client() for _ in range(20)]
            asked = [asyncio.create_task(client.ask(get("/open/a")), name="ask") for client in clients]
            await until(lambda: (hole.connecting, gateway.active) == (10, 10))
            release.set()
            assert {(await each).status for each in asked} == {200}
            await until(lambda: not hole.down(time.monotonic()))
            release.clear()
            asked = [asyncio.create_task(client.ask(get("/open/a")), name="ask") for client in clients]
            await until(lambda: (hole.connecting, gateway.active) == (1, 19))
            release.set()
            assert {(await each).status for each in asked} == {200}
