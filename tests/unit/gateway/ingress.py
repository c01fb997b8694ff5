"""A forward-auth entry, calls in the shape of each ingress, and a transport for addresses other than loopback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from proxy.core.routes import Route
from proxy.gateway.described_request import DESCRIBING_FIELDS
from proxy.gateway.downstream.connection import ClientConnection
from proxy.gateway.forward_auth import ForwardAuthPipeline
from tests.unit.gateway.kit import HOST, NEVER, Answer, Client, Gateway, get

TRUSTED = (f"{HOST}/32",)
TARGET = "/v1/things/42"
ORIGINAL = (("X-Original-Method", "GET"), ("X-Original-URI", TARGET))
FORWARDED = (("X-Forwarded-Method", "GET"), ("X-Forwarded-Uri", TARGET), ("X-Forwarded-Host", "app.example.org"))
URL = (("X-Original-Method", "GET"), ("X-Original-URL", "https://app.example.org" + TARGET))
FABRIC = (("Method", "GET"), ("Path", TARGET))
SHAPES: dict[str, tuple[tuple[str, str], ...]] = {
    "/nginx": ORIGINAL,
    "/ingress-nginx": URL,
    "/nginx-gateway-fabric": FABRIC,
    "/haproxy": FORWARDED,
    "/ url": URL,
    "/traefik": FORWARDED,
    "/caddy": FORWARDED,
    "/caddy?page=2&x=/shut/a": FORWARDED,
    "/ original": ORIGINAL,
    "/ forwarded": FORWARDED,
    "/envoy" + TARGET: (),
}
BOUNDED = ("/nginx", "/ingress-nginx", "/nginx-gateway-fabric")
"""The shapes of ingresses that understand only 2xx, 401 and 403."""
DESCRIBING = [shape for shape, fields in SHAPES.items() if fields]
Fields = Sequence[tuple[str, str]]


@asynccontextmanager
async def entry(
    *,
    routes: Iterable[Route] | None = None,
    trusted: Iterable[str] = TRUSTED,
    max_request_line: int = 8192,
    **facts: Any,
) -> AsyncIterator[Gateway]:
    """A gateway without a backend, with a forward-auth listener as ``Worker`` opens it."""
    facts.setdefault("describing", DESCRIBING_FIELDS)
    gateway = Gateway(9, routes=routes, trusted=trusted, max_request_line=max_request_line, **facts)
    pipeline = ForwardAuthPipeline(
        patience=NEVER,
        routes=gateway.pipeline.routes,
        authenticator=gateway.authenticator,
        responder=gateway.pipeline.responder,
        recorder=gateway.recorder,
        identity=gateway.identity,
        max_request_line=max_request_line,
    )
    gateway.listener.pipeline = pipeline
    try:
        await gateway.start()
        yield gateway
    finally:
        await pipeline.close()
        await gateway.close()


class Wire(asyncio.Transport):
    """A transport to a peer with any address; it records written data, and its buffer is never full."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 4711)})
        self.sent = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def write_eof(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        return None

    resume_reading = pause_reading

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None


def connected(gateway: Gateway, address: str) -> tuple[ClientConnection, Wire]:
    """A new connection from ``address``, and its transport."""
    connection, wire = gateway.listener.connection(address), Wire(address)
    gateway.listener.arriving += 1
    connection.connection_made(wire)
    return connection, wire


async def ask(gateway: Gateway, shape: str, fields: Fields, *lines: str, method: str = "GET") -> Answer:
    client = await gateway.client()
    return await ask_on(client, shape, fields, *lines, method=method)


async def ask_on(client: Client, shape: str, fields: Fields, *lines: str, method: str = "GET") -> Answer:
    said = [f"{name}: {value}" for name, value in fields]
    path = shape.partition(" ")[0]
    return carried(path, await client.ask(get(path, *said, *lines, method=method)))


def carried(path: str, answer: Answer) -> Answer:
    """``answer`` with the status of the verdict, which its fields carry where the ingress understands few statuses."""
    if answer.status == 200:
        assert not any(name.lower().startswith(b"x-patgate") for name, _ in answer.fields)
        return answer
    (status,) = map(int, answer.all(b"x-patgate-status"))
    shape = re.sub("^/require/[^/]*", "", path.partition("?")[0])
    assert answer.status == (403 if shape in BOUNDED and status != 401 else status)
    return replace(answer, status=status)


def login(gateway: Gateway, **facts: object) -> str:
    return f"Authorization: Bearer {gateway.admit(**facts).token}"


def changed(fields: Fields, name: str, *values: str) -> list[tuple[str, str]]:
    """``fields`` with ``values`` for ``name``, each on its own line; without values the field is removed."""
    return [
        pair for key, old in fields for pair in ([(key, value) for value in values] if key == name else [(key, old)])
    ]


async def uri(gateway: Gateway, target: str, *lines: str, method: str = "GET", shape: str = "/traefik") -> Answer:
    """Send a call about ``target``."""
    fields = SHAPES[shape]
    (by, _), (at, described) = fields[:2]
    return await ask(
        gateway, shape, changed(changed(fields, at, described.replace(TARGET, target)), by, method), *lines
    )
