"""Tests of the wire sentinel: it reports each broken rule, and the same bytes give the same result however split."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support import sentinel
from tests.support.process import LOOPBACK
from tests.support.rawhttp import Connection, request_bytes
from tests.support.recorder import Recorder
from tests.support.sentinel import Sentinel, Violation, Watch
from tests.support.tap import Tap, reset

OURS = b"X-Request-Id: 1\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: g\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def message(lines: bytes = b"", body: bytes = b"", *, line: bytes = b"GET /a?b HTTP/1.1", host: bytes = b"g") -> bytes:
    return line + b"\r\nHost: " + host + b"\r\n" + OURS + lines + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked\r\n"

GOOD = {
    "no body": message(),
    "an escape": message(line=b"GET /%7E/caf%C3%A9/a[1]|^ HTTP/1.1"),
    "asterisk-form": message(line=b"OPTIONS * HTTP/1.1"),
    "an IPv6 host": message(host=b"[::1]:80"),
    "an empty value": message(b"X-Auth-Org: \r\nX-Auth-User: u\r\n"),
    "bytes above ASCII in a value": message(b"X: caf\xc3\xa9\t1\r\n"),
    "a repeated field that may be": message(b"Cookie: a=1\r\nCookie: b=2\r\n"),
    "a length": message(b"Content-Length: 4\r\n", b"\r\n\r\n"),
    "a length of nothing": message(b"Content-Length: 0\r\n"),
    "chunks": message(CHUNKED, b"3\r\nabc\r\n10\r\n0123456789\r\n\r\nab\r\n0\r\n\r\n"),
    "an empty chunked body": message(CHUNKED, b"0\r\n\r\n"),
    "an expectation": message(b"Expect: 100-continue\r\nContent-Length: 1\r\n", b"x"),
}

BAD = {
    "absolute-form": message(line=b"GET http://g/a HTTP/1.1"),
    "authority-form": message(line=b"CONNECT g:443 HTTP/1.1"),
    "asterisk-form of GET": message(line=b"GET * HTTP/1.1"),
    "TRACE": message(line=b"TRACE /a HTTP/1.1"),
    "a fragment": message(line=b"GET /a#b HTTP/1.1"),
    "a bare backslash": message(line=b"GET /a\\b HTTP/1.1"),
    "a broken escape": message(line=b"GET /%zz HTTP/1.1"),
    "raw bytes in the path": message(line=b"GET /\xc3\xa9 HTTP/1.1"),
    "HTTP/1.0": message(line=b"GET /a HTTP/1.0"),
    "two spaces": message(line=b"GET  /a HTTP/1.1"),
    "a tab": message(line=b"GET\t/a HTTP/1.1"),
    "no method": message(line=b" /a HTTP/1.1"),
    "no Host": b"GET /a HTTP/1.1\r\n" + OURS + b"\r\n",
    "two Hosts": message(b"Host: g\r\n"),
    "a Host with a path": message(host=b"a/b"),
    "a Host with a login": message(host=b"a@b"),
    "an empty Host": message(host=b""),
    "a bare LF in a line": message(b"A: b\nC: d\r\n"),
    "a bare CR in a line": message(b"A: b\rC: d\r\n"),
    "NUL in a value": message(b"A: b\0\r\n"),
    "a control byte in a value": message(b"A: \x1b[31m\r\n"),
    "a folded line": message(b"A: b\r\n c\r\n"),
    "a space before the colon": message(b"A : b\r\n"),
    "an empty name": message(b": b\r\n"),
    "a name that is no token": message(b"A(b): c\r\n"),
    "a line without a colon": message(b"A\r\n"),
    "both framings": message(b"Content-Length: 0\r\n" + CHUNKED, b"0\r\n\r\n"),
    "two lengths": message(b"Content-Length: 0\r\nContent-Length: 0\r\n"),
    "a length in a list": message(b"Content-Length: 0, 0\r\n"),
    "a signed length": message(b"Content-Length: +0\r\n"),
    "an empty length": message(b"Content-Length:\r\n"),
    "two codings": message(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "a coding in capitals": message(b"Transfer-Encoding: Chunked\r\n", b"0\r\n\r\n"),
    "a repeated coding": message(CHUNKED + CHUNKED, b"0\r\n\r\n"),
    "an alias of the length": message(b"Content_Length: 5\r\n"),
    "an alias of the coding": message(b"Transfer.Encoding: chunked\r\n"),
    "a chunk extension": message(CHUNKED, b"1;a=b\r\nx\r\n0\r\n\r\n"),
    "a padded chunk size": message(CHUNKED, b"01\r\nx\r\n0\r\n\r\n"),
    "a chunk size in capitals": message(CHUNKED, b"A\r\n0123456789\r\n0\r\n\r\n"),
    "a chunk size with a sign": message(CHUNKED, b"+1\r\nx\r\n0\r\n\r\n"),
    "a chunk size with a space": message(CHUNKED, b"1 \r\nx\r\n0\r\n\r\n"),
    "an endless chunk size": message(CHUNKED, b"1" * 40),
    "a chunk size with a bare LF": message(CHUNKED, b"1\nx\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": message(CHUNKED, b"1\r\nxy\r\n0\r\n\r\n"),
    "a chunk that is shorter than it says": message(CHUNKED, b"4\r\nx\r\n0\r\n\r\n"),
    "a padded last chunk": message(CHUNKED, b"00\r\n\r\n"),
    "trailers": message(CHUNKED, b"0\r\nX-Auth-User: m\r\n\r\n"),
    "Connection: close": message(b"Connection: close\r\n"),
    "Keep-Alive": message(b"Keep-Alive: timeout=5\r\n"),
    "TE": message(b"TE: trailers\r\n"),
    "Trailer": message(b"Trailer: X\r\n"),
    "an upgrade to h2c": message(b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    "an upgrade by POST": message(b"Connection: Upgrade\r\nUpgrade: websocket\r\n", line=b"POST /a HTTP/1.1"),
    "HTTP2-Settings": message(b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"),
    "a proxy's login": message(b"Proxy-Authorization: Basic eA==\r\n"),
    "an unknown expectation": message(b"Expect: 200-ok\r\n"),
    "an identity field twice": message(b"X-Auth-User: a\r\nx-auth-user: b\r\n"),
    "an alias of an identity field": message(b"X_Auth_User: a\r\n"),
    "an alias of another product's": message(b"Remote.User: a\r\n"),
    "no request id": message().replace(b"X-Request-Id: 1\r\n", b""),
    "two forwarding fields": message(b"X-Forwarded-For: 1.2.3.4\r\n"),
    "an empty line in front": b"\r\n" + message(),
    "a NUL in front": b"\0" + message(),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_a_good_message_passes_and_another_after_its_answer(data: bytes) -> None:
    watched = Sentinel("test")
    for number in (1, 2):
        watched.sent(data)
        assert watched.ends[-1] == number * len(data)
        watched.agree(number * len(data))
        watched.answered(ANSWER)


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_a_good_message_may_be_cut_anywhere(data: bytes) -> None:
    watched = Sentinel("test")
    for at in range(len(data)):
        watched.sent(data[at : at + 1])
    assert watched.ends == [len(data)]


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_bad_message_is_a_violation(data: bytes) -> None:
    with pytest.raises(Violation):
        Sentinel("test").sent(data)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_bad_message_is_a_violation_however_it_is_cut(data: bytes) -> None:
    watched = Sentinel("test")
    with pytest.raises(Violation):
        for at in range(len(data)):
            watched.sent(data[at : at + 1])


def test_bytes_before_the_answer_are_a_violation() -> None:
    watched = Sentinel("test")
    watched.sent(message())
    with pytest.raises(Violation, match="before the last message was answered"):
        watched.sent(message())


def test_an_interim_answer_is_no_answer() -> None:
    watched = Sentinel("test")
    watched.sent(message())
    watched.answered(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
    with pytest.raises(Violation):
        watched.sent(message())
    other = Sentinel("test")
    other.sent(message())
    other.answered(b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER)
    other.sent(message())


def test_bytes_of_a_tunnel_are_free_only_after_its_101() -> None:
    opening = message(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
    watched = Sentinel("test")
    watched.sent(opening)
    watched.answered(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    watched.sent(b"\x81\x02hi\0\r\n")
    early = Sentinel("test")
    early.sent(opening)
    with pytest.raises(Violation):
        early.sent(b"\x81\x02hi")
    refused = Sentinel("test")
    refused.sent(opening)
    refused.answered(ANSWER)
    with pytest.raises(Violation):
        refused.sent(b"\x81\x02hi")


def test_a_backend_that_ends_a_message_elsewhere_is_a_violation() -> None:
    watched = Sentinel("test")
    watched.sent(message(b"Content-Length: 4\r\n", b"body"))
    with pytest.raises(Violation, match="the backend read a message"):
        watched.agree(watched.ends[-1] - 4)


@contextmanager
def reports() -> Iterator[list[str]]:
    """The violations found during a test, hidden from the plugin, which would end the run."""
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sentinel, "FOUND", found)
        yield found


def test_a_watch_reports_once_and_looks_away() -> None:
    with reports() as found:
        watch = Watch("here")
        watch.sent(message(b"TE: trailers\r\n"))
        watch.sent(b"more of the same")
        watch.agree(0)
    assert len(found) == 1
    assert "here" in found[0]
    assert "hop-by-hop: te" in found[0]


def test_the_recorder_and_the_tap_have_a_sentinel() -> None:
    with reports() as found:
        with Recorder() as recorder, Connection(recorder.port) as connection:
            assert connection.exchange(message()).status == 200
            assert found == []
            assert connection.exchange(request_bytes("GET", "/")).status == 200
        assert len(found) == 1
        with (
            Recorder(watched=False) as recorder,
            Tap(recorder.port, "tapped") as tap,
            Connection(tap.port) as connection,
        ):
            for number in (2, 3):
                assert connection.exchange(message()).status == 200
                assert len(recorder.requests) == number - 1
            assert connection.exchange(message(b"Content_Length: 1\r\n")).status == 200
            assert recorder.requests[-1].head == message(b"Content_Length: 1\r\n")
        assert len(found) == 2
        assert "tapped" in found[1]


def test_the_tap_passes_ends_and_resets_on() -> None:
    with (
        socket.create_server((LOOPBACK, 0)) as listener,
        Tap(listener.getsockname()[1], "tapped") as tap,
    ):
        with Connection(tap.port) as connection:
            connection.send(message())
            backend, _ = listener.accept()
            with backend:
                connection.socket.shutdown(socket.SHUT_WR)
                while backend.recv(1 << 16):
                    pass
                backend.sendall(b"the answer")
            assert connection.read_to_end() == b"the answer"
        # Wait until here: with two at a time, the order in which they reach the backend is unknown.
        with Connection(tap.port) as unlucky:
            backend, _ = listener.accept()
            unlucky.send(message())
            reset(backend)
            with pytest.raises(ConnectionResetError):
                while unlucky.socket.recv(1 << 16):
                    pass
