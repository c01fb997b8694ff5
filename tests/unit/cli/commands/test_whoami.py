"""``patgate whoami`` shows requests exactly as they arrived."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.process import HANGS_SECONDS
from tests.unit.cli.running import ROOT, environment


@pytest.fixture
def port() -> Iterator[int]:
    """The port of an echo backend that stops when the test closes its lifeline."""
    lifeline_in, lifeline_out = os.pipe()
    command = [sys.executable, "-m", "proxy", "whoami", "--bind", "127.0.0.1:0", "--lifeline-fd", str(lifeline_in)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), pass_fds=(lifeline_in,)
    )
    with process:
        os.close(lifeline_in)
        assert process.stdout is not None
        yield int(process.stdout.readline().rpartition(":")[2])
        os.close(lifeline_out)
        assert process.wait(HANGS_SECONDS) == 0


def exchange(port: int, request: bytes) -> tuple[bytes, dict[str, object]]:
    """The head and the JSON document of the response to one raw request."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANGS_SECONDS) as client:
        client.sendall(request)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, json.loads(body)


def test_the_path_and_every_header_are_shown_as_they_arrived(port: int) -> None:
    _, seen = exchange(
        port,
        b"GET /a%2Fb/%41?q=%20 HTTP/1.1\r\nHost: x\r\n"
        b"X-Auth-User: one\r\nx-auth-user: two\r\nConnection: close\r\n\r\n",
    )
    assert seen["method"] == "GET"
    assert seen["path"] == "/a%2Fb/%41?q=%20"
    assert seen["headers"] == [["Host", "x"], ["X-Auth-User", "one"], ["x-auth-user", "two"], ["Connection", "close"]]


def test_a_compressed_chunked_body_is_counted_and_not_unpacked(port: int) -> None:
    _, seen = exchange(
        port,
        b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\n"
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    )
    assert seen["body_length"] == 11


def test_a_head_request_gets_no_body(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=HANGS_SECONDS) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


def test_sigterm_ends_whoami_and_a_taken_port_is_reported_in_one_sentence() -> None:
    command = [sys.executable, "-m", "proxy", "whoami", "--json", "--bind"]
    with subprocess.Popen(
        [*command, "127.0.0.1:0"], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    ) as process:
        assert process.stdout is not None
        address = json.loads("".join(process.stdout.readline() for _ in range(4)))["address"]
        second = subprocess.run(
            [*command, address],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(),
            timeout=HANGS_SECONDS,
            check=False,
        )
        assert second.returncode == 1
        assert second.stderr == f"The whoami listener cannot use {address}: another process is listening there.\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANGS_SECONDS) == 0
