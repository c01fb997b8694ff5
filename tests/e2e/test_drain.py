"""Draining on SIGTERM: readiness, requests in progress, WebSocket Close frames, and cuts at the deadline."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Patgate
from tests.support.operate import routes
from tests.support.process import HANGS_SECONDS, accepts, wait_until
from tests.support.rawhttp import ConnectionEnded
from tests.support.scripted import Peer, ScriptedBackend, response
from tests.support.websocket import ACCEPTED, CLOSE, GOING_AWAY, TEXT, Client, frame, read_frame

GET = b"GET %b HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.fixture
def scripted() -> Iterator[ScriptedBackend]:
    with ScriptedBackend() as backend:
        yield backend


def node_for(backend: ScriptedBackend, directory: Path, **timeouts: Any) -> Patgate:
    """A node with one worker and a public route to the backend."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "routes": routes({"path": "/**", "access": "public"}),
        "timeouts": timeouts,
    }
    return Patgate(directory, config)


def stopping(node: Patgate) -> None:
    """Send SIGTERM, and wait until the gateway logs that it is stopping."""
    node.process.signal(signal.SIGTERM)
    wait_until(lambda: any(record["event"] == "stopping" for record in node.records()), "the stop begun")


def unready(node: Patgate) -> tuple[int, set[str]]:
    """The status of the readiness check, and the checks that failed."""
    answer = node.control("GET", "/readyz")
    return answer.status, {reason["check"] for reason in answer.json().get("reasons", ())}


def test_a_websocket_is_closed_with_1001_on_both_sides_where_a_frame_ends(
    tmp_path: Path, scripted: ScriptedBackend
) -> None:
    """When the stop begins in the middle of a frame, the Close frame is sent after the rest of that frame."""
    seen: list[tuple[int, bytes, bool]] = []
    rest = threading.Event()

    def plan(peer: Peer) -> None:
        if b"upgrade: websocket" not in peer.head().lower():
            peer.send(response())
            return
        whole = frame(TEXT, b"x" * 1000)
        peer.send(ACCEPTED + whole[:300])
        rest.wait(HANGS_SECONDS)
        peer.send(whole[300:])
        seen.append(read_frame(peer.exactly))
        peer.send(frame(CLOSE, GOING_AWAY))
        assert peer.rest() == b""

    scripted.use(plan)
    with node_for(scripted, tmp_path) as node, node.connect() as connection:
        client = Client(connection.socket)
        assert client.open(b"/ws") == 101
        stopping(node)
        wait_until(lambda: not accepts(node.port), "no new connections")
        rest.set()
        assert client.receive() == (TEXT, b"x" * 1000)
        assert client.receive() == (CLOSE, GOING_AWAY)
        client.send(CLOSE, GOING_AWAY)
        assert client.ended()
        assert node.process.wait() == 0
    assert seen == [(CLOSE, GOING_AWAY, True)]


def test_an_idle_websocket_whose_ends_never_answer_holds_nobody_up(tmp_path: Path, scripted: ScriptedBackend) -> None:
    def plan(peer: Peer) -> None:
        peer.head()
        peer.send(ACCEPTED)
        assert read_frame(peer.exactly) == (CLOSE, GOING_AWAY, True)
        peer.rest()

    scripted.use(plan)
    with node_for(scripted, tmp_path, drain="600s") as node, node.connect() as connection:
        client = Client(connection.socket)
        assert client.open(b"/ws") == 101
        stopping(node)
        assert client.receive() == (CLOSE, GOING_AWAY)
        assert client.ended()
        assert node.process.wait() == 0


def test_a_download_that_has_begun_ends_whole_and_its_connection_is_closed(
    tmp_path: Path, scripted: ScriptedBackend
) -> None:
    whole = response(b"x" * 100_000)
    rest = threading.Event()

    def plan(peer: Peer) -> None:
        peer.head()
        peer.send(whole[:1000])
        rest.wait(HANGS_SECONDS)
        peer.send(whole[1000:])

    scripted.use(plan)
    with node_for(scripted, tmp_path) as node, node.connect() as connection, node.connect() as idle:
        connection.send(GET % b"/file")
        wait_until(lambda: scripted.targets == ["/file"], "the download begun")
        stopping(node)
        assert idle.read_to_end() == b"", "an idle connection is closed at once"
        assert not accepts(node.port)
        rest.set()
        assert connection.read_response().body == b"x" * 100_000
        assert connection.ended()
        assert node.process.wait() == 0


def test_a_download_that_does_not_end_in_time_is_cut_and_never_looks_whole(
    tmp_path: Path, scripted: ScriptedBackend
) -> None:
    def plan(peer: Peer) -> None:
        peer.head()
        # The end of the connection ends this body, so only a reset shows that it is truncated.
        peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome of it")
        peer.rest()

    scripted.use(plan)
    with node_for(scripted, tmp_path, drain="500ms") as node, node.connect() as connection:
        connection.send(b"GET /file HTTP/1.0\r\nHost: gateway\r\n\r\n")
        assert connection.socket.recv(65536)
        stopping(node)
        with pytest.raises(ConnectionResetError):
            while connection.socket.recv(65536):
                pass
        assert node.process.wait() == 0


def test_what_was_sent_before_the_stop_is_answered_the_last_of_it_with_a_close(
    tmp_path: Path, scripted: ScriptedBackend
) -> None:
    rest = threading.Event()

    def plan(peer: Peer) -> None:
        while True:
            head = peer.head()
            rest.wait(HANGS_SECONDS)
            peer.send(response(head.split(b" ")[1]))

    scripted.use(plan)
    with node_for(scripted, tmp_path) as node, node.connect() as connection:
        connection.send(GET % b"/first" + GET % b"/second")
        wait_until(lambda: scripted.targets == ["/first"], "the first request begun")
        stopping(node)
        wait_until(lambda: not accepts(node.port), "no new connections")
        rest.set()
        answers = [connection.read_response()]
        while answers[-1].keeps_alive:
            answers.append(connection.read_response())
        assert [answer.body for answer in answers] == [b"/first", b"/second"][: len(answers)]
        assert connection.ended()
        assert node.process.wait() == 0


def test_readiness_goes_first_and_requests_are_taken_for_the_grace_on_connections_that_close(
    tmp_path: Path, scripted: ScriptedBackend
) -> None:
    with node_for(scripted, tmp_path, grace="600s") as node:
        stopping(node)
        # A busy machine may be unready for another reason first.
        wait_until(lambda: unready(node) == (503, {"draining"}), "readiness off")

        def closes() -> bool:
            with node.connect() as connection:
                answer = connection.exchange(GET % b"/still")
                assert (answer.status, answer.body) == (200, b"/still")
                return not answer.keeps_alive

        wait_until(closes, "answers that close their connections")
        node.process.signal(signal.SIGHUP)
        node.process.signal(signal.SIGTERM)
        assert node.process.wait() == 0
        assert "reloads nothing any more" in node.log


def test_a_reload_whose_stop_comes_at_once_ends_in_the_stop(tmp_path: Path, scripted: ScriptedBackend) -> None:
    with node_for(scripted, tmp_path) as node, node.connect() as connection:
        assert connection.exchange(GET % b"/before").status == 200
        node.process.signal(signal.SIGHUP)
        node.process.signal(signal.SIGTERM)
        assert node.process.wait() == 0
        with pytest.raises((ConnectionEnded, OSError)):
            connection.exchange(GET % b"/after")
