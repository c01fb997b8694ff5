"""Accepting connections: the limit, refusals by the system, PROXY headers of load balancers, and TLS."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from proxy.gateway.downstream.acceptor import Drop, Pause
from proxy.gateway.downstream.listener import Listener
from proxy.observe.metrics import ACCEPT_PAUSES, CONNECTIONS_DROPPED
from tests.support.certificates import pair
from tests.support.sockets import unread
from tests.unit.gateway.kit import (
    HOST,
    Answer,
    Backend,
    BackendConnection,
    Client,
    Entrance,
    Gateway,
    answering,
    field_lines,
    get,
    response,
    serving,
    until,
)

BALANCER = "127.0.0.2"
CLOSING = ("Connection: close",)


def paused(gateway: Gateway, cause: Pause) -> float:
    return gateway.tally.snapshot().counters[ACCEPT_PAUSES.name].get(("proxy", cause.value), 0)


def dropped(gateway: Gateway, cause: Drop) -> float:
    return gateway.tally.snapshot().counters[CONNECTIONS_DROPPED.name].get(("proxy", cause.value), 0)


def echo_source(head: bytes) -> bytes:
    return response(b",".join(field_lines(head, "X-Forwarded-For")))


async def connected(gateway: Gateway, source: str = HOST, context: ssl.SSLContext | None = None) -> Client:
    """A client whose own address is ``source``."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(sock, (HOST, gateway.port))
    return await over(gateway, sock, context)


async def over(gateway: Gateway, sock: socket.socket, context: ssl.SSLContext | None = None) -> Client:
    name = None if context is None else "gateway"
    reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
    client = Client(reader, writer)
    gateway.clients.append(client)
    return client


# --- limits ---


class Held:
    """A backend that answers when it is released."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, connection: BackendConnection) -> None:
        while True:
            await connection.request()
            await self.release.wait()
            await connection.send(response())


def seen(backend: Backend) -> int:
    """How many requests have arrived."""
    return len([connection for connection in backend.connections if connection.head])


async def test_at_the_limit_the_next_connection_waits_until_one_is_closed() -> None:
    held = Held()
    async with serving(held, entrance=Entrance(connections=3)) as (gateway, backend):
        clients = []
        for number in range(4):
            # None of the first three is ever idle for as long as one that is closed for another.
            await until(lambda number=number: seen(backend) == number)  # type: ignore[misc]
            clients.append(await connected(gateway))
            clients[-1].send(get("/open/a", *CLOSING))
        await until(lambda: paused(gateway, Pause.LIMIT))
        assert len(gateway.listener.connections) == 3
        held.release.set()
        assert [(await client.answer()).status for client in clients] == [200] * 4
        assert dropped(gateway, Drop.ROOM) == 0


async def test_up_to_the_limit_no_connection_waits() -> None:
    held = Held()
    async with serving(held, entrance=Entrance(connections=3)) as (gateway, backend):
        clients = [await connected(gateway) for _ in range(3)]
        for client in clients:
            client.send(get("/open/a"))
        await until(lambda: seen(backend) == 3)
        assert paused(gateway, Pause.LIMIT) == 0
        held.release.set()


async def test_at_the_limit_the_connection_that_was_idle_longest_makes_room() -> None:
    async with serving(answering(response()), entrance=Entrance(connections=3)) as (gateway, _):
        clients = [await connected(gateway) for _ in range(3)]
        for client in (clients[1], clients[2], clients[0]):
            assert (await client.ask(get("/open/a"))).status == 200
        late = await connected(gateway)
        assert (await late.ask(get("/open/a"))).status == 200
        assert await clients[1].rest() == b""
        assert dropped(gateway, Drop.ROOM) == 1
        for client in (clients[2], clients[0]):
            assert (await client.ask(get("/open/b"))).status == 200


async def test_connections_that_never_sent_a_request_make_room_too() -> None:
    async with serving(answering(response()), entrance=Entrance(connections=2)) as (gateway, _):
        silent = [await connected(gateway) for _ in range(2)]
        late = await connected(gateway)
        assert (await late.ask(get("/open/a"))).status == 200
        assert await silent[0].rest() == b""


class Watched:
    """A listener, and how often the acceptor searched it for idle connections."""

    def __init__(self, listener: Listener) -> None:
        self.__dict__.update(listener=listener, asked=0)

    @property
    def count(self) -> int:
        return int(self.__dict__["asked"])

    def __getattr__(self, name: str) -> object:
        if name == "idle_longest":
            self.__dict__["asked"] += 1
        return getattr(self.__dict__["listener"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["listener"], name, value)


async def test_clients_that_come_and_go_at_the_limit_do_not_cause_a_search_each_time() -> None:
    held = Held()
    watches: list[Watched] = []

    def watched(listener: Listener) -> Watched:
        watches.append(Watched(listener))
        return watches[-1]

    async with serving(held, entrance=Entrance(connections=2, seen_by_acceptor=watched)) as (gateway, backend):
        clients = [await connected(gateway) for _ in range(2)]
        for client in clients:
            client.send(get("/open/a"))
        await until(lambda: seen(backend) == 2)
        before = watches[0].count
        waiting = await connected(gateway)
        begun = time.monotonic()
        await until(lambda: paused(gateway, Pause.LIMIT) >= 20)
        assert watches[0].count - before <= 2 + (time.monotonic() - begun) / 0.1
        held.release.set()
        waiting.send(get("/open/a"))
        clients[0].writer.close()
        assert (await waiting.answer()).status == 200


async def test_the_limit_is_logged_once_however_often_it_is_reached(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="patgate"):
        async with serving(answering(response()), entrance=Entrance(connections=1)) as (gateway, _):
            for _ in range(3):
                clients = [await connected(gateway) for _ in range(3)]
                for client in clients:
                    client.send(get("/open/a", *CLOSING))
                assert [(await client.answer()).status for client in clients] == [200] * 3
            assert paused(gateway, Pause.LIMIT) > 1
    assert len([record for record in caplog.records if "connection limit" in record.getMessage()]) == 1


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open no further descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A descriptor that garbage holds would be free as soon as the collector runs.
    gc.collect()
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_accepting_pauses_and_resumes_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="patgate"):
        async with serving(answering(response())) as (gateway, _):
            served = await connected(gateway)
            assert (await served.ask(get("/open/a"))).status == 200
            sock = socket.socket()
            sock.setblocking(False)
            with no_descriptors():
                await asyncio.get_running_loop().sock_connect(sock, (HOST, gateway.port))
                await until(lambda: paused(gateway, Pause.RESOURCES) >= 2)
                # Open connections are still served.
                assert (await served.ask(get("/open/a"))).status == 200
            late = await over(gateway, sock)
            assert (await late.ask(get("/open/a"))).status == 200
    assert len([record for record in caplog.records if "no more connections" in record.getMessage()]) == 1


async def test_a_drain_waits_for_connections_that_are_arriving() -> None:
    async with serving(answering(response()), entrance=Entrance(introduced_by=(BALANCER,))) as (gateway, _):
        client = await connected(gateway, BALANCER)
        await until(lambda: gateway.listener.open)
        gateway.listener.drain()
        gateway.acceptor.close()
        assert not gateway.listener.empty.is_set()
        answer = await client.ask(b"PROXY UNKNOWN\r\n" + get("/open/a"))
        assert (answer.status, answer.closes) == (200, True)
        client.writer.close()
        await until(gateway.listener.empty.is_set)


async def test_a_drain_ends_when_the_last_arriving_connection_fails() -> None:
    async with serving(answering(response()), entrance=Entrance(introduced_by=(BALANCER,))) as (gateway, _):
        client = await connected(gateway, BALANCER)
        await until(lambda: gateway.listener.open)
        gateway.listener.drain()
        gateway.acceptor.close()
        client.send(b"nonsense\r\n\r\n")
        await until(gateway.listener.empty.is_set)


# --- PROXY headers ---


def all_read(gateway: Gateway, client: Client) -> bool:
    """Whether the gateway has taken everything that the client sent."""
    return unread(gateway.port, client.writer.get_extra_info("sockname")[1]) == 0


async def asked(client: Client, data: bytes) -> Answer:
    """The answer to a request behind a header."""
    client.send(data)
    return await client.answer()


V1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0f" + bytes((192, 0, 2, 7, 10, 0, 0, 1, 0, 1, 0, 2)) + b"\x04\0\0"
V2_MAPPED = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24"
    + bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 7)) + bytes(16) + struct.pack("!HH", 1, 2)
)  # fmt: skip
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
HEADERS = pytest.mark.parametrize(
    ("header", "source"),
    [
        (V1, b"192.0.2.7"),
        (V2, b"192.0.2.7"),
        (V2_MAPPED, b"192.0.2.7"),
        (LOCAL, BALANCER.encode()),
        (b"PROXY UNKNOWN\r\n", BALANCER.encode()),
    ],
    ids=["v1", "v2", "v2 mapped", "v2 local", "v1 unknown"],
)
INTRODUCED = Entrance(introduced_by=(f"{BALANCER}/32",))


@HEADERS
async def test_a_listed_load_balancer_names_the_client(header: bytes, source: bytes) -> None:
    async with serving(answering(echo_source), entrance=INTRODUCED, access="all") as (gateway, _):
        client = await connected(gateway, BALANCER)
        assert (await asked(client, header + get("/open/a", "X-Forwarded-For: 6.6.6.6"))).body == source
        assert (await client.ask(get("/open/b"))).body == source
        await until(lambda: len(gateway.access) == 2)
        assert {line["peer"] for line in gateway.access} == {source.decode()}


@HEADERS
async def test_a_header_may_arrive_byte_by_byte(header: bytes, source: bytes) -> None:
    async with serving(answering(echo_source), entrance=INTRODUCED) as (gateway, _):
        client = await connected(gateway, BALANCER)
        (sock,) = [client.writer.get_extra_info("socket")]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await until(lambda: gateway.listener.open)
        for at in range(len(header) - 1):
            client.send(header[at : at + 1])
            await until(partial(all_read, gateway, client))
        client.send(header[-1:] + get("/open/a"))
        assert (await client.answer()).body == source


async def test_trust_depends_on_the_client_that_the_header_names() -> None:
    facts = {"trusted": ("192.0.2.7/32",), "entrance": INTRODUCED}
    async with serving(answering(echo_source), **facts) as (gateway, _):
        client = await connected(gateway, BALANCER)
        assert (await asked(client, V1 + get("/open/a", "X-Forwarded-For: 6.6.6.6"))).body == b"6.6.6.6, 192.0.2.7"
        client = await connected(gateway, BALANCER)
        other = V1.replace(b"192.0.2.7", b"192.0.2.8")
        assert (await asked(client, other + get("/open/a", "X-Forwarded-For: 6.6.6.6"))).body == b"192.0.2.8"


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_a_header_from_another_peer_is_a_malformed_request(header: bytes) -> None:
    async with serving(answering(echo_source), entrance=INTRODUCED) as (gateway, backend):
        client = await connected(gateway)
        assert (await asked(client, header + get("/open/a"))).status == 400
        client = await connected(gateway)
        assert (await client.ask(get("/open/a"))).body == HOST.encode()
        assert len(backend.connections) == 1


@pytest.mark.parametrize(
    "beginning",
    [
        get("/open/a"),
        b"PROXY TCP4 nonsense\r\n" + get("/open/a"),
        V2.replace(b"\x21\x11", b"\x31\x11"),
        b"\x16\x03\x01",
    ],
)
async def test_a_load_balancer_without_a_valid_header_is_closed_without_an_answer(beginning: bytes) -> None:
    async with serving(answering(echo_source), entrance=INTRODUCED) as (gateway, backend):
        client = await connected(gateway, BALANCER)
        client.send(beginning)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()
        assert backend.connections == []
        assert dropped(gateway, Drop.PROXY_HEADER) == 1
        assert gateway.listener.open == 0


@pytest.mark.parametrize("beginning", [b"", b"PROXY TCP4 192", V2[:15], V2[:-1]])
async def test_a_header_has_a_deadline(beginning: bytes) -> None:
    entrance = Entrance(introduced_by=(BALANCER,), handshake_seconds=0.1)
    async with serving(answering(echo_source), entrance=entrance) as (gateway, _):
        client = await connected(gateway, BALANCER)
        client.send(beginning)
        assert await client.rest() == b""
        assert dropped(gateway, Drop.PROXY_HEADER) == 1
        assert gateway.listener.open == 0


@pytest.mark.parametrize(("beginning", "count"), [(b"", 0), (b"PROXY TCP4 192", 1)])
async def test_a_load_balancer_may_check_the_port_and_close(beginning: bytes, count: int) -> None:
    async with serving(answering(echo_source), entrance=INTRODUCED) as (gateway, _):
        client = await connected(gateway, BALANCER)
        await until(lambda: gateway.listener.open)
        client.send(beginning)
        client.writer.close()
        await until(lambda: not gateway.listener.open)
        assert dropped(gateway, Drop.PROXY_HEADER) == count


async def _nonsense(client: Client) -> None:
    client.send(b"nonsense\r\n\r\n")


async def _goes(client: Client) -> None:
    client.writer.close()


async def _breaks_off(client: Client) -> None:
    client.send(b"PROXY TCP4 192")
    client.writer.write_eof()


async def _resets(client: Client) -> None:
    client.writer.transport.abort()


@pytest.mark.parametrize("fail", [_nonsense, _goes, _breaks_off, _resets], ids=lambda fail: fail.__name__.strip("_"))
async def test_at_the_limit_an_invalid_header_makes_room_for_the_next(
    fail: Callable[[Client], Awaitable[None]],
) -> None:
    entrance = Entrance(introduced_by=(f"{BALANCER}/32",), connections=1)
    async with serving(answering(echo_source), entrance=entrance) as (gateway, _):
        silent = await connected(gateway, BALANCER)
        waiting = await connected(gateway, BALANCER)
        await until(lambda: gateway.listener.open and paused(gateway, Pause.LIMIT))
        # At once, and not when the next look at deadlines comes.
        gateway.stop_sweeping()
        await fail(silent)
        assert (await asked(waiting, V1 + get("/open/a"))).body == b"192.0.2.7"


async def test_at_the_limit_a_header_that_is_late_makes_room_for_the_next() -> None:
    entrance = Entrance(introduced_by=(f"{BALANCER}/32",), connections=1, handshake_seconds=0.5)
    async with serving(answering(echo_source), entrance=entrance) as (gateway, _):
        gateway.stop_sweeping()
        await connected(gateway, BALANCER)
        waiting = await connected(gateway, BALANCER)
        await until(lambda: gateway.listener.open and paused(gateway, Pause.LIMIT))
        gateway.sweep_on()
        assert (await asked(waiting, V1 + get("/open/a"))).body == b"192.0.2.7"


# --- TLS ---


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS contexts of the gateway and of a client."""
    directory: Path = tmp_path_factory.mktemp("tls")
    made = pair(directory)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    return server, ssl.create_default_context(cafile=str(made.certificate))


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


async def test_tls_begins_with_the_first_byte_behind_the_header(contexts: Contexts) -> None:
    entrance = Entrance(introduced_by=(BALANCER,), context=contexts[0])
    async with serving(answering(echo_source), entrance=entrance) as (gateway, _):
        for header in (V1, V2):
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind((BALANCER, 0))
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (HOST, gateway.port))
            await loop.sock_sendall(sock, header)
            client = await over(gateway, sock, contexts[1])
            assert (await client.ask(get("/open/a"))).body == b"192.0.2.7"


async def test_a_tls_handshake_has_a_deadline(contexts: Contexts) -> None:
    entrance = Entrance(context=contexts[0], handshake_seconds=0.2)
    async with serving(answering(response()), entrance=entrance) as (gateway, _):
        silent = await connected(gateway)
        assert await silent.rest() == b""
        await until(lambda: dropped(gateway, Drop.HANDSHAKE) == 1 and not gateway.listener.open)


async def test_a_client_without_tls_is_dropped_and_others_are_served(contexts: Contexts) -> None:
    async with serving(answering(response()), entrance=Entrance(context=contexts[0])) as (gateway, _):
        plain = await connected(gateway)
        plain.send(get("/open/a"))
        await plain.rest()
        await until(lambda: dropped(gateway, Drop.HANDSHAKE) == 1 and not gateway.listener.open)
        client = await connected(gateway, context=contexts[1])
        assert (await client.ask(get("/open/a"))).status == 200


async def test_a_tls_client_reads_the_refusal_of_a_body_that_it_is_still_sending(contexts: Contexts) -> None:
    """No reset destroys the answer while more of the body arrives."""
    async with serving(answering(response()), entrance=Entrance(context=contexts[0])) as (gateway, backend):
        for _ in range(5):
            client = await connected(gateway, context=contexts[1])
            client.send(b"POST /shut/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100000000\r\n\r\n" + bytes(500_000))
            await asyncio.sleep(0)
            for _ in range(20):
                client.send(bytes(100_000))
            answer = await client.answer()
            assert (answer.status, answer.closes) == (403, True)
            client.writer.transport.abort()
        await until(lambda: not gateway.listener.open)
        assert backend.connections == []


async def test_a_tls_connection_is_gone_once_both_sides_have_closed_it(contexts: Contexts) -> None:
    async with serving(answering(response()), entrance=Entrance(context=contexts[0])) as (gateway, _):
        client = await connected(gateway, context=contexts[1])
        assert (await client.ask(get("/open/a", *CLOSING))).status == 200
        assert await client.rest() == b""
        client.writer.close()
        await until(lambda: not gateway.listener.open)


async def test_a_tls_client_that_never_closes_is_cut_soon(contexts: Contexts) -> None:
    async with serving(answering(response()), entrance=Entrance(context=contexts[0])) as (gateway, _):
        client = await connected(gateway, context=contexts[1])
        transport = cast(asyncio.Transport, client.writer.transport)
        assert (await client.ask(get("/open/a", *CLOSING))).status == 200
        transport.pause_reading()
        await until(lambda: not gateway.listener.open)
