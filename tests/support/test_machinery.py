"""Tests of the test support itself, on which every result about the product depends."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.support.process import LOOPBACK, Process, accepts, children, free_port, run, wait_until
from tests.support.rawhttp import Connection, ConnectionEnded
from tests.support.recorder import Recorder
from tests.support.scripted import ScriptedBackend
from tests.support.sockets import serving_pid


def test_the_recorder_keeps_the_bytes_of_every_connection() -> None:
    first = b"POST /a HTTP/1.1\r\nhost: x\r\nX_a: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    first += b"4;ext\r\nbody\r\n0\r\nTrailer: t\r\n\r\n"
    second = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"
    with Recorder(watched=False) as recorder:
        with Connection(recorder.port) as connection:
            assert connection.exchange(first).status == 200
            assert connection.exchange(second).status == 200
        with Connection(recorder.port) as connection:
            assert connection.exchange(second).status == 200
        assert recorder.received == [first + second, second]
        assert [request.target for request in recorder.requests] == [b"/a", b"/b", b"/b"]
        assert recorder.requests[0].only("x-A") == "1"
        assert recorder.requests[0].body.endswith(b"Trailer: t\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", b"abcd"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n", b""),
    ],
)
def test_the_client_reads_a_body_by_its_framing(answer: bytes, body: bytes) -> None:
    with Recorder(lambda request: answer, watched=False) as recorder, Connection(recorder.port) as connection:
        assert connection.request("GET", "/").body == body


def test_the_client_tells_a_cut_response_from_a_whole_one() -> None:
    cut = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\nabc"
    with (
        Recorder(lambda request: cut, watched=False) as recorder,
        Connection(recorder.port) as connection,
        pytest.raises(ConnectionEnded),
    ):
        connection.request("GET", "/")


def test_a_process_is_started_found_by_its_connection_and_ended(tmp_path: Path) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "http.server", str(port), "--bind", LOOPBACK]
    with Process(argv, name="server", directory=tmp_path) as process:
        wait_until(lambda: accepts(port), "a server", process=process)
        assert process.pid in children(os.getpid())
        with Connection(port) as connection:
            assert serving_pid(port, connection.local_port, [os.getpid(), process.pid]) == process.pid
    assert process.exit_code is not None
    assert not accepts(port)


def test_a_server_that_does_not_listen_keeps_its_port() -> None:
    with ScriptedBackend() as backend:
        backend.die()
        assert not accepts(backend.port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((LOOPBACK, backend.port))
        backend.revive()
        assert accepts(backend.port)


def test_free_ports_in_a_row_are_free_and_given_once() -> None:
    first, second = free_port(in_a_row=3), free_port()
    assert second not in range(first, first + 3)
    assert not any(accepts(port) for port in (first, first + 1, first + 2, second))


def test_waiting_for_a_process_that_has_exited_shows_its_log(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "print('what went wrong')"]
    with (
        Process(argv, name="short", directory=tmp_path) as process,
        pytest.raises(AssertionError, match=r"what went wrong"),
    ):
        wait_until(lambda: False, "never", process=process)


def test_a_command_has_no_input_and_its_outputs_apart() -> None:
    done = run([sys.executable, "-c", "import sys; print(sys.stdin.read() == ''); print('e', file=sys.stderr)"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "e\n")
