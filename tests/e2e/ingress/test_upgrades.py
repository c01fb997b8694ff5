"""No ingress lets a client upgrade its connection to anything but a WebSocket.

After ``Upgrade: h2c`` an application that speaks it would take further requests from the client itself, which nobody
judges. The application of these tests accepts every upgrade that arrives.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.e2e.ingress.matrix import Row
from tests.support.ingress import Ingress
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
    """Ask for this upgrade."""
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
