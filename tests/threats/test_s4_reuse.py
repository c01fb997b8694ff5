"""Threat model §4: early responses and reused connections never mix the bytes of two messages."""

from __future__ import annotations

import threading
import time

import pytest

from tests.support.gateway import Patgate
from tests.support.process import HANGS_SECONDS
from tests.support.rawhttp import request_bytes
from tests.support.scripted import Peer, Plan, ScriptedBackend, echo, response
from tests.threats.cases import DESYNCHRONISING, UPGRADES

SMUGGLED = b"GET /public/smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


def once(answer: bytes) -> Plan:
    """A backend that answers the first request of the first connection with ``answer``, and all others correctly."""

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(answer)
        echo(peer)

    return plan


def assert_own_answers(node: Patgate, count: int = 3) -> None:
    """Assert that other clients then get the responses to their own requests."""
    for number in range(count):
        with node.connect() as connection:
            answer = connection.request("GET", f"/public/own-{number}")
            assert (answer.status, answer.body) == (200, f"/public/own-{number}".encode())


# --- the client's side ---


@pytest.mark.parametrize("framing", ["Content-Length: 59", "Transfer-Encoding: chunked"])
def test_the_body_of_a_refused_expectation_is_never_the_next_request(
    framing: str, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    head = f"POST /v1/things HTTP/1.1\r\nHost: gateway\r\nExpect: 100-continue\r\n{framing}\r\n\r\n".encode()
    with node.connect() as connection:
        answer = connection.exchange(head)
        assert (answer.status, answer.informational) == (401, ())
        assert not answer.keeps_alive
        connection.send(SMUGGLED)
        assert connection.ended()
    assert_own_answers(node, 1)
    assert misbehaving.targets == ["/public/own-0"]


@pytest.mark.parametrize("framing", [b"Content-Length: 59", b"Transfer-Encoding: chunked"])
def test_the_unread_body_of_a_refused_request_is_never_the_next_request(
    framing: bytes, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    with node.connect() as connection:
        answer = connection.exchange(b"POST /v1/things HTTP/1.1\r\nHost: gateway\r\n" + framing + b"\r\n\r\n")
        assert answer.status == 401
        assert not answer.keeps_alive
        connection.send(SMUGGLED)
        assert connection.ended()
    assert_own_answers(node, 1)
    assert misbehaving.targets == ["/public/own-0"]


def test_a_body_that_is_a_request_stays_a_body(node: Patgate, misbehaving: ScriptedBackend) -> None:
    bodies: list[bytes] = []

    def plan(peer: Peer) -> None:
        peer.head()
        bodies.append(peer.exactly(len(SMUGGLED)))
        peer.send(response())
        echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        assert connection.request("POST", "/public/upload", body=SMUGGLED).status == 200
        assert connection.request("GET", "/public/next").body == b"/public/next"
    assert bodies == [SMUGGLED]
    assert misbehaving.targets == ["/public/upload", "/public/next"]


def test_a_body_of_a_get_is_a_body(node: Patgate, misbehaving: ScriptedBackend) -> None:
    bodies: list[bytes] = []

    def plan(peer: Peer) -> None:
        peer.head()
        bodies.append(peer.exactly(len(SMUGGLED)))
        peer.send(response())
        echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        assert connection.request("GET", "/public/query", body=SMUGGLED).status == 200
    assert bodies == [SMUGGLED]
    assert misbehaving.targets == ["/public/query"]


@pytest.mark.parametrize("method", ["CONNECT", "connect"])
@pytest.mark.parametrize("target", ["gateway:443", "/public/a", "/", "*", "http://gateway/public/a", "127.0.0.1:22"])
def test_connect_is_refused_and_what_follows_is_not_read(
    target: str, method: str, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    with node.connect() as connection:
        answer = connection.exchange(f"{method} {target} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode() + SMUGGLED)
        assert answer.status == 405
        assert connection.ended()
    assert_own_answers(node, 1)
    assert misbehaving.targets == ["/public/own-0"]


@pytest.mark.parametrize("lines", UPGRADES.values(), ids=UPGRADES)
def test_an_upgrade_other_than_websocket_is_dropped_with_its_headers(
    lines: str, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    with node.connect() as connection:
        head = f"GET /public/a HTTP/1.1\r\nHost: gateway\r\n{lines}\r\n".encode()
        first = connection.exchange(head)
        assert first.status in (200, 400)
        if first.keeps_alive:
            assert connection.request("GET", "/public/next").body == b"/public/next"
    seen = b"".join(head for peer in misbehaving.peers for head in peer.heads).lower()
    assert b"upgrade" not in seen
    assert b"h2c" not in seen
    assert b"settings" not in seen


def test_requests_ahead_of_their_answers_are_sent_on_one_by_one(node: Patgate, misbehaving: ScriptedBackend) -> None:
    """No backend gets two requests at once on a connection (the sentinel checks it), and the order is kept."""
    targets = [f"/public/{number}" for number in range(20)]
    with node.connect() as connection:
        connection.send(b"".join(request_bytes("GET", target) for target in targets))
        assert [connection.read_response().body.decode() for _ in targets] == targets
    assert misbehaving.targets == targets


def test_a_request_ahead_of_a_refused_one_is_answered_and_one_behind_it_is_not_run(
    node: Patgate, misbehaving: ScriptedBackend
) -> None:
    bad = b"GET /public/bad HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1, 1\r\n\r\n"
    with node.connect() as connection:
        connection.send(request_bytes("GET", "/public/good") + bad + SMUGGLED)
        assert connection.read_response().body == b"/public/good"
        assert connection.read_response().status == 400
        assert connection.ended()
    assert_own_answers(node, 1)
    assert misbehaving.targets == ["/public/good", "/public/own-0"]


# --- the backend's side ---


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("status", [b"200 OK", b"413 Content Too Large", b"401 Unauthorized"])
def test_an_answer_before_the_body_closes_both_connections(
    status: bytes, framing: str, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(response(status=status))
            assert b"smuggled" not in peer.rest()
        echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        connection.send(f"POST /public/upload HTTP/1.1\r\nHost: gateway\r\n{framing}\r\n\r\n".encode())
        answer = connection.read_response("POST")
        assert answer.status == int(status[:3])
        assert not answer.keeps_alive
        connection.send(SMUGGLED)
        assert connection.ended()
    assert_own_answers(node)
    assert misbehaving.peers[0].ended.wait(HANGS_SECONDS), "the connection was kept, though a body is owed on it"
    assert misbehaving.peers[0].targets == ["/public/upload"]
    assert misbehaving.targets == ["/public/upload", "/public/own-0", "/public/own-1", "/public/own-2"]


def test_an_answer_in_the_middle_of_the_body_closes_both_connections(
    node: Patgate, misbehaving: ScriptedBackend
) -> None:
    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.exactly(10)
            peer.send(response(status=b"400 Bad Request"))
            peer.rest()
        echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        connection.send(b"PUT /public/upload HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000\r\n\r\n" + b"b" * 10)
        answer = connection.read_response("PUT")
        assert answer.status == 400
        assert not answer.keeps_alive
        assert connection.ended()
    assert_own_answers(node)
    assert misbehaving.peers[0].targets == ["/public/upload"]


@pytest.mark.parametrize(("method", "answer", "status"), DESYNCHRONISING.values(), ids=DESYNCHRONISING)
def test_an_answer_without_a_body_does_not_desynchronise_whatever_it_announces(
    method: str, answer: bytes, status: int, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    misbehaving.use(once(answer))
    with node.connect() as connection:
        first = connection.request(method, "/public/first")
        assert first.status == status
        if status != 200:
            assert first.body == b""
        assert status != 204 or not first.all("content-length")
        assert not first.all("transfer-encoding") or method == "HEAD"
        assert connection.request("GET", "/public/second").body == b"/public/second"
    assert_own_answers(node)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n" + POISON),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 45\r\n\r\n" + POISON),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 45\r\n\r\n" + POISON),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n2d\r\n" + POISON + b"\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" + POISON),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + POISON),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + POISON),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\r\n"),
    ],
    ids=repr,
)
def test_more_bytes_than_declared_are_discarded_with_their_connection(
    method: str, answer: bytes, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    misbehaving.use(once(answer))
    with node.connect() as connection:
        assert connection.request(method, "/public/first").status == int(answer[9:12])
        assert connection.request("GET", "/public/second").body == b"/public/second"
    assert_own_answers(node)
    assert misbehaving.peers[0].ended.wait(HANGS_SECONDS)
    assert misbehaving.peers[0].targets == ["/public/first"]


@pytest.mark.parametrize("extra", [POISON, b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 408 Timeout\r\n\r\n"])
def test_bytes_with_no_request_open_are_discarded_with_their_connection(
    extra: bytes, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    answered = threading.Event()

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(response())
            assert answered.wait(HANGS_SECONDS)
            peer.send(extra)
            assert peer.rest() == b""
        echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        assert connection.request("GET", "/public/first").body == b"ok"
        answered.set()
        assert misbehaving.peers[0].ended.wait(HANGS_SECONDS), (
            "the gateway keeps a connection on which nobody asked for what came"
        )
        assert connection.request("GET", "/public/second").body == b"/public/second"
    assert_own_answers(node)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + POISON,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000 + response(),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 Early\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
    ids=lambda answer: repr(answer[:70]),
)
def test_an_answer_that_is_none_is_a_502_and_its_connection_is_closed(
    answer: bytes, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    misbehaving.use(once(answer))
    with node.connect() as connection:
        refused = connection.request("GET", "/public/first")
        assert refused.status == 502
        assert refused.json()["reason"] == "upstream_protocol"
        assert len(refused.informational) <= 16
        assert connection.request("GET", "/public/second").body == b"/public/second"
    assert_own_answers(node)
    assert misbehaving.peers[0].ended.wait(HANGS_SECONDS)
    assert misbehaving.peers[0].targets == ["/public/first"]


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"<html>too old for a head</html>",
        b"HTTP/2 200\r\n\r\n",
        b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        b"\x15\x03\x03\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\nno field\r\n",
    ],
    ids=repr,
)
@pytest.mark.alone
def test_what_can_never_become_an_answer_is_refused_at_once(
    said: bytes, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    """It does not wait for the response timeout of ten seconds."""

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(said)
            peer.rest()
        echo(peer)

    misbehaving.use(plan)
    begun = time.monotonic()
    with node.connect() as connection:
        refused = connection.request("GET", "/public/first")
        assert (refused.status, refused.json()["reason"]) == (502, "upstream_protocol")
    assert time.monotonic() - begun < 5
    assert misbehaving.peers[0].ended.wait(HANGS_SECONDS)
    assert_own_answers(node)


def test_the_length_of_an_answer_goes_on_as_the_number_that_was_read(
    node: Patgate, misbehaving: ScriptedBackend
) -> None:
    misbehaving.use(once(b"HTTP/1.1 200 OK\r\nContent-Length: 0200\r\n\r\n" + b"b" * 200))
    with node.connect() as connection:
        answer = connection.request("GET", "/public/first")
        assert (answer.all("content-length"), answer.body) == (["200"], b"b" * 200)
        assert connection.request("GET", "/public/second").body == b"/public/second"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: Close, x\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=repr,
)
def test_a_connection_that_its_backend_does_not_keep_is_not_reused(
    answer: bytes, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    misbehaving.use(once(answer))
    with node.connect() as connection:
        assert connection.request("GET", "/public/first").body == b"ok"
        assert connection.request("GET", "/public/second").body == b"/public/second"
    assert misbehaving.peers[0].targets == ["/public/first"]


def test_a_clean_exchange_keeps_its_connection(node: Patgate, misbehaving: ScriptedBackend) -> None:
    """Without this, the tests above would prove nothing."""
    assert_own_answers(node, 5)
    assert len(misbehaving.peers) == 1


# --- WebSocket, the only upgrade ---

OPENING = b"""GET /public/socket HTTP/1.1\r
Host: gateway\r
Connection: Upgrade\r
Upgrade: websocket\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r
\r
"""
SWITCH = b"""HTTP/1.1 101 Switching Protocols\r
Connection: Upgrade\r
Upgrade: websocket\r
Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r
\r
"""


def test_bytes_before_the_101_arrive_after_it_and_the_tunnel_is_never_pooled(
    node: Patgate, misbehaving: ScriptedBackend
) -> None:
    """Before the 101 they would be a violation for the sentinel; the backend gets them after it, in the same tunnel."""
    tunnelled: list[bytes] = []

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            assert not peer.waiting(0.2), "bytes came before the 101"
            peer.send(SWITCH + b"hello")
            tunnelled.append(peer.exactly(len(SMUGGLED)))
            peer.send(b"bye")
        else:
            echo(peer)

    misbehaving.use(plan)
    with node.connect() as connection:
        connection.send(OPENING + SMUGGLED)
        assert connection.read_response().status == 101
        assert connection.read_to_end() == b"hellobye"
    assert tunnelled == [SMUGGLED]
    assert_own_answers(node)
    assert misbehaving.peers[0].targets == ["/public/socket"]


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request", b"426 Upgrade Required"])
def test_bytes_behind_a_refused_upgrade_never_reach_the_backend_as_bytes(
    status: bytes, node: Patgate, misbehaving: ScriptedBackend
) -> None:
    """Without a 101 there is no tunnel: bytes after the request are another request, or are not read."""
    misbehaving.use(once(response(status=status)))
    with node.connect() as connection:
        connection.send(OPENING + b"\x81\x02hi" + SMUGGLED)
        assert connection.read_response().status == int(status[:3])
        assert b"/public/smuggled" not in connection.read_to_end()
    assert_own_answers(node)
    assert "/public/smuggled" not in misbehaving.targets
