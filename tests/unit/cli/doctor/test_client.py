"""One request of ``patgate doctor``: whatever a server does, it ends in time."""

from __future__ import annotations

import socket
import ssl
import time

import pytest

from proxy.cli.doctor import client
from proxy.cli.doctor.client import Address, NoAnswer, send
from tests.support.listener import Listener
from tests.support.process import LOOPBACK

DEADLINE = 0.5
HELLO = b"\x16\x03\x03\x00\x80\x02"
"""The beginning of a TLS record (RFC 8446 §5.1) that holds the beginning of a ServerHello."""


class Dripping(Listener):
    """Sends the first bytes at once and then one byte at a time, for longer than any deadline."""

    def __init__(self, first: bytes) -> None:
        self.first = first
        super().__init__("dripping")

    def serve(self, number: int, connection: socket.socket) -> None:
        connection.sendall(self.first)
        while True:
            connection.sendall(b"a")
            time.sleep(DEADLINE / 10)  # the interval of the drip


@pytest.fixture(autouse=True)
def deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SECONDS", DEADLINE)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: "], ids=repr)
def test_a_server_that_drips_its_head_holds_a_request_no_longer_than_its_deadline(first: bytes) -> None:
    with Dripping(first) as server, pytest.raises(NoAnswer, match="no answer within"):
        send(Address(name=LOOPBACK, port=server.port, host="a"), "/")


def test_a_server_that_drips_its_handshake_holds_a_request_no_longer_than_its_deadline() -> None:
    with Dripping(HELLO) as server, pytest.raises(NoAnswer, match="no answer within"):
        send(Address(name=LOOPBACK, port=server.port, host="a", tls=ssl.create_default_context()), "/")


def test_a_body_that_drips_is_cut_at_the_deadline_and_its_beginning_counts() -> None:
    with Dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegin") as server:
        response = send(Address(name=LOOPBACK, port=server.port, host="a"), "/")
    assert (response.status, response.body[:6]) == (200, b"begina")


@pytest.mark.parametrize("tls", [None, ssl.create_default_context()], ids=["plain", "tls"])
def test_a_server_that_ends_the_connection_at_once_gave_no_answer(tls: ssl.SSLContext | None) -> None:
    class Leaving(Listener):
        def serve(self, number: int, connection: socket.socket) -> None:
            connection.recv(1)

    with Leaving("leaving") as server, pytest.raises(NoAnswer):
        send(Address(name=LOOPBACK, port=server.port, host="a", tls=tls), "/")
