"""No ingress lets a client upgrade its connection to anything but a WebSocket.

After ``Upgrade: h2c`` an application that speaks it would take further requests from the client itself, which nobody
judges. The application of these tests accepts every upgrade that arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support.gateway import Patgate, Token
from tests.support.ingress import KUBERNETES_HOST, Ingress, traefik_in_kubernetes
from tests.support.rawhttp import Connection, ConnectionEnded
from tests.support.recorder import OK, Recorded, Recorder

UPGRADES = {
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    "h2c in a second Connection": ("Connection: close", "Connection: Upgrade", "Upgrade: h2c"),
    "h2c before a WebSocket": ("Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket", "HTTP2-Settings: AAMAAABk"),
    "h2c behind a WebSocket": ("Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"),
    "h2c in one list with a WebSocket": ("Connection: Upgrade", "Upgrade: h2c,websocket"),
    "a WebSocket in one list with h2c": ("Connection: Upgrade", "Upgrade: websocket, h2c"),
    "TLS": ("Connection: Upgrade", "Upgrade: TLS/1.0"),
    "a protocol of its own": ("Connection: upgrade", "Upgrade: foo", "Upgrade: websocket"),
    "without Connection": ("Upgrade: h2c",),
}


def accepts_any(request: Recorded) -> bytes:
    """The 101 that an application gives which speaks every protocol."""
    wanted = request.all("Upgrade")
    if not wanted or not request.all("Connection"):
        return OK
    return b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % wanted[0]


def upgrade(ingress: Ingress, form: str, host: str) -> None:
    lines = "".join(f"{line}\r\n" for line in UPGRADES[form])
    with Connection(ingress.port) as connection, suppress(ConnectionEnded, ConnectionResetError):
        connection.exchange(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())


@pytest.mark.parametrize("form", UPGRADES)
@pytest.mark.row(Row.WEBSOCKETS)
def test_no_upgrade_but_to_a_websocket_arrives(form: str, ingress: Ingress, behind: Recorder) -> None:
    behind.script = accepts_any
    upgrade(ingress, form, "gateway")
    for request in behind.requests:
        assert request.all("Upgrade") in ([], [b"websocket"])


@pytest.fixture(scope="module")
def in_kubernetes(tmp_path_factory: pytest.TempPathFactory, asked: Patgate, application: Recorder) -> Iterator[Ingress]:
    directory = tmp_path_factory.mktemp("kubernetes")
    ports = {"application": application.port, "forward_auth": asked.forward_auth_port}
    with traefik_in_kubernetes(directory, **ports) as running:
        yield running


@pytest.mark.parametrize("form", UPGRADES)
def test_no_upgrade_but_to_a_websocket_arrives_behind_traefik_in_kubernetes(
    form: str, in_kubernetes: Ingress, behind: Recorder
) -> None:
    behind.script = accepts_any
    upgrade(in_kubernetes, form, KUBERNETES_HOST)
    for request in behind.requests:
        assert request.all("Upgrade") in ([], [b"websocket"])


def test_a_websocket_and_an_identity_pass_traefik_in_kubernetes(
    in_kubernetes: Ingress, behind: Recorder, editor: Token
) -> None:
    behind.script = accepts_any
    lines = f"Host: {KUBERNETES_HOST}\r\nAuthorization: Bearer {editor.value}\r\nX-Auth-Role: admin\r\n"
    opening = "Connection: keep-alive, Upgrade, X-Auth-Role\r\nUpgrade: websocket\r\n"
    with Connection(in_kubernetes.port) as connection, suppress(ConnectionEnded):
        connection.exchange(f"GET /v1/channels/7/messages HTTP/1.1\r\n{lines}{opening}\r\n".encode())
    seen = behind.last()
    assert seen.only("Upgrade") == "websocket"
    assert seen.only("X-Auth-Role") == "editor"
    assert seen.all("Authorization") == []
    behind.clear()
    with Connection(in_kubernetes.port) as connection:
        head = f"GET /v1/channels/7/messages HTTP/1.1\r\nHost: {KUBERNETES_HOST}\r\n{opening}\r\n"
        assert connection.exchange(head.encode()).status == 401
    assert behind.requests == []
