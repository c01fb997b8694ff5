"""Threat model §4: a disconnect ends the client's request and leaves no partial request behind."""

from __future__ import annotations

import threading
import time

import pytest

from tests.support.gateway import Patgate
from tests.support.process import HANGS_SECONDS, wait_until
from tests.support.rawhttp import request_bytes
from tests.support.recorder import Recorder
from tests.support.scripted import Peer, ScriptedBackend, echo
from tests.support.sockets import taken
from tests.threats.test_s4_reuse import POISON, assert_own_answers


def test_a_client_that_leaves_takes_its_upstream_connection_along(node: Patgate, misbehaving: ScriptedBackend) -> None:
    """The rest of an abandoned response must not become the beginning of the next one."""
    asked = threading.Event()

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst bytes")
            asked.set()
            peer.rest()
            peer.send(POISON)
        echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        connection.send(request_bytes("GET", "/public/left"))
        assert asked.wait(HANGS_SECONDS)
        assert connection.socket.recv(10)
    assert misbehaving.peers[0].ended.wait(HANGS_SECONDS)
    assert_own_answers(node)
    assert misbehaving.peers[0].targets == ["/public/left"]


def logged(node: Patgate) -> list[tuple[int, str]]:
    """Status and reason of the abandoned requests in the log."""
    return [(line["status"], line["reason"]) for line in node.records() if line.get("path") == "/public/gave-up"]


@pytest.mark.parametrize("ahead", [0, 20], ids=["alone", "with much sent ahead"])
@pytest.mark.alone
def test_a_client_that_leaves_before_its_answer_takes_its_upstream_connection_along(
    ahead: int, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    """The client (curl) disconnects; the backend would answer later than the test waits. The log has 499, not 200."""
    asked, noticed, before = threading.Event(), threading.Event(), len(logged(node))

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            asked.set()
            peer.rest()
            noticed.set()
            peer.send(POISON)
        echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        connection.send(request_bytes("GET", "/public/gave-up"))
        assert asked.wait(HANGS_SECONDS)
        connection.send(request_bytes("GET", "/public/ahead", headers={"X-Fill": "a" * 8000}) * ahead)
        left = time.monotonic()
    assert noticed.wait(HANGS_SECONDS)
    # A second, and a tolerance; the response takes ten.
    assert time.monotonic() - left < 4
    assert_own_answers(node)
    assert misbehaving.peers[0].targets == ["/public/gave-up"]
    wait_until(lambda: len(logged(node)) > before, "the line of the request")
    assert logged(node)[before:] == [(499, "client_left")]


def test_a_client_that_leaves_inside_its_body_leaves_no_half_request_behind(
    node: Patgate, misbehaving: ScriptedBackend
) -> None:
    ended: list[bytes] = []

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            ended.append(peer.rest())
        echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        connection.send(
            b"POST /public/half HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        wait_until(lambda: misbehaving.targets, "the head at the backend")
    wait_until(lambda: ended, "the connection's end at the backend")
    assert not ended[0].endswith(b"0\r\n\r\n"), "the half body was made to look whole"
    assert_own_answers(node)


def test_a_client_may_leave_at_any_time_of_a_pipelined_exchange(gateway: Patgate, recorder: Recorder) -> None:
    """Pipelined requests of a disconnected client never mix with those of another client."""
    ahead = b"".join(request_bytes("GET", f"/public/gone-{number}") for number in range(10))
    left = []
    for cut in range(0, len(ahead), 97):
        with gateway.connect() as connection:
            connection.send(ahead[: len(ahead) - cut])
            left.append(connection.local_port)
    for number in range(5):
        with gateway.connect() as connection:
            assert connection.request("GET", f"/public/own-{number}").status == 200
    own = [request.target for request in recorder.requests if request.target.startswith(b"/public/own")]
    assert own == [b"/public/own-%d" % number for number in range(5)]
    # The next test begins when no worker works on one of these requests any more.
    wait_until(lambda: not taken(gateway.port, left), "the end of every connection", process=gateway.process)
    recorder.finish_connections()
