"""WebSocket tunnels, and the end of exchanges whose grant was revoked."""

from __future__ import annotations

import asyncio
import functools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from proxy.core.ipc.shared_memory import SLOT_EPOCH, SLOT_LEASE
from proxy.core.kinds import Kind
from proxy.core.model import RefusedGrant
from proxy.core.reasons import Reason
from proxy.core.token import Minted
from proxy.gateway.grants.expiry_clock import EXPIRY_CLOCK
from tests.unit.gateway.kit import (
    TOKENS,
    Backend,
    BackendConnection,
    Client,
    Gateway,
    Handler,
    answering,
    field_lines,
    get,
    make_grant,
    make_page,
    response,
    serving,
    until,
)
from tests.unit.gateway.scripted import Authority, authority_at

pytestmark = pytest.mark.alone  # exchanges have to end within a second of their revocation

SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
)
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: abc", "Sec-WebSocket-Version: 13")


async def echo_tunnel(connection: BackendConnection) -> None:
    """Switch protocols, then echo every byte."""
    await connection.request()
    await connection.send(SWITCH)
    while data := await connection.reader.read(65536):
        await connection.send(data)


async def endless(connection: BackendConnection) -> None:
    """An event stream without an end."""
    await connection.request()
    await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await connection.send(b"5\r\ntick\n\r\n")
        await asyncio.sleep(0.01)


class World:
    """A gateway, a backend, and an authority that can revoke a token."""

    def __init__(self, gateway: Gateway, backend: Backend, authority: Authority) -> None:
        self.gateway = gateway
        self.backend = backend
        self.authority = authority

    def admit(self, **facts: Any) -> Minted:
        minted = TOKENS.mint(Kind.PAT)
        self.authority.grants[minted.prefix] = make_grant(minted, **facts)
        return minted

    def revoke(self, minted: Minted) -> None:
        key = f"token:{minted.token_id}"
        self.authority.grants[minted.prefix] = RefusedGrant(
            prefix=minted.prefix, reason=Reason.TOKEN_REVOKED, depends=(key,)
        )
        self.commit(key)

    def commit(self, key: str) -> None:
        since = self.authority.epoch
        self.gateway.page[SLOT_EPOCH] = epoch = self.authority.change(key)
        self.authority.push({"push": "changes", "since": since, "epoch": epoch, "keys": [key]})


async def ended(waiting: Awaitable[object]) -> bool:
    """Whether reading fails because the connection broke, instead of ending cleanly."""
    with suppress(asyncio.IncompleteReadError, ConnectionResetError):
        await waiting
        return False
    return True


def asked_more(authority: Authority, before: int) -> bool:
    return authority.asked["resolve"] > before


@asynccontextmanager
async def world(handler: Handler, **facts: Any) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "link.sock"
        async with (
            authority_at(path) as authority,
            serving(handler, link_path=path, page=make_page(), **facts) as (gateway, backend),
        ):
            await until(lambda: gateway.link.up)
            yield World(gateway, backend, authority)


async def switched(gateway: Gateway, *lines: str, target: str = "/v1/things/1", ahead: bytes = b"") -> Client:
    client = await gateway.client()
    client.send(get(target, *UPGRADE, *lines) + ahead)
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert field_lines(head, "upgrade") == [b"websocket"] and field_lines(head, "connection") == [b"Upgrade"]
    assert field_lines(head, "sec-websocket-accept") == [b"x"]
    return client


async def test_a_websocket_is_a_byte_tunnel_after_the_101() -> None:
    async with world(echo_tunnel) as here:
        minted = here.admit()
        client = await switched(here.gateway, f"Authorization: Bearer {minted.token}", ahead=b"\x81\x05early")
        assert await client.reader.readexactly(7) == b"\x81\x05early"
        data = bytes(range(256)) * 4096
        client.send(data)
        assert await client.reader.readexactly(len(data)) == data
        head = here.backend.connections[0].head
        assert field_lines(head, "upgrade") == [b"websocket"] and field_lines(head, "connection") == [b"Upgrade"]
        assert field_lines(head, "authorization") == [] and len(field_lines(head, "x-auth-user")) == 1
        client.writer.close()
        await until(lambda: here.gateway.active == 0 and not here.gateway.pipeline.live)
        assert here.gateway.idle == 0


async def test_the_end_of_the_backend_ends_the_tunnel_after_its_last_byte() -> None:
    async def handle(connection: BackendConnection) -> None:
        await connection.request()
        await connection.send(SWITCH + b"last words")

    async with world(handle) as here:
        client = await switched(here.gateway, f"Authorization: Bearer {here.admit().token}")
        assert await client.rest() == b"last words"
        await until(lambda: not here.gateway.pipeline.live)


async def test_an_upgrade_that_the_backend_declines_gets_its_response_and_closes() -> None:
    async with serving(answering(response(b"no", status=b"400 Bad Request"))) as (gateway, _):
        client = await gateway.client()
        client.send(get("/open/ws", *UPGRADE) + b"\x81\x05early")
        answer = await client.answer()
        assert answer.status == 400 and answer.closes
        assert await client.rest() == b""


async def test_any_other_upgrade_is_dropped_with_its_fields() -> None:
    async with serving(answering(response(b"plain"))) as (gateway, backend):
        client = await gateway.client()
        lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        for asked in (lines, ("Upgrade: websocket",), ("Upgrade: websocket, h2c", "Connection: upgrade")):
            assert (await client.ask(get("/open/a", *asked))).body == b"plain"
            head = backend.connections[0].head
            assert not field_lines(head, "upgrade") and not field_lines(head, "http2-settings")
            assert not field_lines(head, "connection")


async def test_a_revoked_token_ends_its_websocket_and_its_stream_within_a_second_and_no_other() -> None:
    async with world(endless) as here:
        dead, alive = here.admit(), here.admit()
        streams = {}
        for minted in (dead, alive):
            client = await here.gateway.client()
            client.send(get("/v1/things/1", f"Authorization: Bearer {minted.token}"))
            await client.reader.readuntil(b"tick\n")
            streams[minted.prefix] = client
        assert len(here.gateway.pipeline.live) == 2
        here.revoke(dead)
        started = time.monotonic()
        assert await ended(asyncio.wait_for(streams[dead.prefix].reader.read(-1), 5))
        assert time.monotonic() - started < 1.0
        for _ in range(5):
            await streams[alive.prefix].reader.readuntil(b"tick\n")
        assert len(here.gateway.pipeline.live) == 1


async def test_a_revoked_token_ends_its_websocket() -> None:
    async with world(echo_tunnel) as here:
        minted = here.admit()
        client = await switched(here.gateway, f"Authorization: Bearer {minted.token}")
        here.revoke(minted)
        assert await ended(asyncio.wait_for(client.reader.readexactly(1), 1.0))
        await until(lambda: here.gateway.active == 0)


async def test_a_change_that_still_allows_the_stream_does_not_cut_it() -> None:
    async with world(endless) as here:
        minted = here.admit()
        client = await here.gateway.client()
        client.send(get("/v1/things/1", f"Authorization: Bearer {minted.token}"))
        await client.reader.readuntil(b"tick\n")
        for _ in range(3):
            asked = here.authority.asked["resolve"]
            here.commit(f"token:{minted.token_id}")
            await until(functools.partial(asked_more, here.authority, asked))
            for _ in range(3):
                await client.reader.readuntil(b"tick\n")
        here.revoke(minted)
        assert await ended(asyncio.wait_for(client.reader.read(-1), 1.0))


async def test_a_stream_ends_with_its_token_and_with_the_lease() -> None:
    async with world(endless) as here:
        short = here.admit(expires_at=time.time() + 1.5)
        lasting = here.admit()
        clients = []
        for minted in (short, lasting):
            client = await here.gateway.client()
            client.send(get("/v1/things/1", f"Authorization: Bearer {minted.token}"))
            await client.reader.readuntil(b"tick\n")
            clients.append(client)
        assert await ended(asyncio.wait_for(clients[0].reader.read(-1), 20))
        await clients[1].reader.readuntil(b"tick\n")
        here.gateway.page[SLOT_LEASE] = 0
        assert await ended(asyncio.wait_for(clients[1].reader.read(-1), 1.0))


async def test_streams_and_requests_end_by_the_clock_of_the_store_if_that_is_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(endless) as here:
        short = here.admit(expires_at=time.time() + 3600)
        client = await here.gateway.client()
        client.send(get("/v1/things/1", f"Authorization: Bearer {short.token}"))
        await client.reader.readuntil(b"tick\n")
        monkeypatch.setattr(EXPIRY_CLOCK, "ahead", 3600.0)
        assert await ended(asyncio.wait_for(client.reader.read(-1), 20))
        again = await here.gateway.client()
        again.send(get("/v1/things/1", f"Authorization: Bearer {short.token}"))
        assert (await again.reader.readline()).split()[1] == b"401"


async def test_a_grant_with_a_running_stream_is_not_evicted_from_a_full_cache() -> None:
    async with world(endless, cache_capacity=2) as here:
        minted = here.admit()
        client = await here.gateway.client()
        client.send(get("/v1/things/1", f"Authorization: Bearer {minted.token}"))
        await client.reader.readuntil(b"tick\n")
        for _ in range(20):
            here.gateway.admit()
        assert minted.prefix in here.gateway.cache.entries and len(here.gateway.cache) <= 3
        here.revoke(minted)
        assert await ended(asyncio.wait_for(client.reader.read(-1), 1.0))


async def test_an_upload_under_a_revoked_token_is_refused() -> None:
    async def swallow(connection: BackendConnection) -> None:
        await connection.request()
        assert await connection.exactly(10) == b"x" * 10
        assert await connection.gone()

    async with world(swallow) as here:
        minted = here.admit()
        client = await here.gateway.client()
        head = get("/v1/things/1", f"Authorization: Bearer {minted.token}", "Content-Length: 1000", method="PUT")
        client.send(head + b"x" * 10)
        await until(lambda: here.gateway.active == 1)
        here.revoke(minted)
        answer = await client.answer(seconds=1)
        assert answer.status == 401 and answer.closes


async def test_an_upload_that_a_new_grant_refuses_is_no_longer_watched() -> None:
    """The new grant has no watched exchanges, which must not look like an exchange that was never watched."""

    async def swallow(connection: BackendConnection) -> None:
        await connection.request()
        assert await connection.gone()

    async with world(swallow) as here:
        minted = here.admit()
        client = await here.gateway.client()
        client.send(get("/v1/things/1", f"Authorization: Bearer {minted.token}", "Content-Length: 9", method="PUT"))
        await until(lambda: len(here.gateway.pipeline.live) == 1)
        here.authority.grants[minted.prefix] = make_grant(minted, permissions=())
        here.commit(f"token:{minted.token_id}")
        assert (await client.answer()).status == 403
        assert not here.gateway.pipeline.live


async def test_on_a_report_only_route_no_exchange_is_cut() -> None:
    """An exchange that was only reported at its start is not cut by later changes."""
    async with world(endless) as here:
        unable, short = here.admit(permissions=()), here.admit(expires_at=time.time() + 0.2)
        for minted in (unable, short):
            client = await here.gateway.client()
            client.send(get("/report/1", f"Authorization: Bearer {minted.token}"))
            await client.reader.readuntil(b"tick\n")
            here.commit(f"token:{minted.token_id}")
            for _ in range(40):
                await client.reader.readuntil(b"tick\n")
        assert not here.gateway.pipeline.live
