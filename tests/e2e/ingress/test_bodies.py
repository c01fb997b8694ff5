"""Bodies, streams and unusual requests: what passes an ingress after the verdict, and what never passes without one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.e2e.ingress.matrix import Row
from tests.e2e.ingress.streams import BLOCK, Streams
from tests.support.gateway import Patgate, Token
from tests.support.ingress import INGRESSES, Ingress, asked_port
from tests.support.plugin import EDITOR
from tests.support.rawhttp import Connection, ConnectionEnded, Response
from tests.support.recorder import Recorded, Recorder

LARGE = 100 * 1000 * 1000


@pytest.fixture(scope="module")
def streams() -> Iterator[Streams]:
    with Streams() as server:
        yield server


@pytest.fixture(scope="module", params=INGRESSES)
def before_streams(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, asked: Patgate, streams: Streams
) -> Iterator[Ingress]:
    """Each ingress in front of ``streams``."""
    directory = tmp_path_factory.mktemp(request.param)
    ports = {"application": streams.port, "forward_auth": asked_port(request.param, asked)}
    with INGRESSES[request.param](directory, **ports) as running:
        yield running


def head(method: str, target: str, token: Token | None, *lines: str) -> bytes:
    login = [f"Authorization: Bearer {token.value}"] if token else []
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: gateway", *login, *lines, "", ""]).encode()


@pytest.mark.row(Row.UPLOADS)
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_large_body_arrives_whole(framing: str, before_streams: Ingress, streams: Streams, editor: Token) -> None:
    block = bytes(range(256)) * (BLOCK // 256)
    digest, sent = hashlib.sha256(), 0
    with Connection(before_streams.port) as connection:
        line = f"Content-Length: {LARGE}" if framing == "length" else "Transfer-Encoding: chunked"
        connection.send(head("PUT", "/v1/things/1", editor, line))
        while sent < LARGE:
            data = block[: LARGE - sent]
            connection.send(data if framing == "length" else b"%x\r\n%b\r\n" % (len(data), data))
            digest.update(data)
            sent += len(data)
        if framing == "chunks":
            connection.send(b"0\r\n\r\n")
        response = connection.read_response("PUT")
    assert (response.status, response.body.decode()) == (200, f"{LARGE} {digest.hexdigest()}")


@pytest.mark.row(Row.UPLOADS)
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_the_verdict_does_not_wait_for_the_body(framing: str, before_streams: Ingress, streams: Streams) -> None:
    """The refusal comes while the client still sends; Caddy and Traefik read up to 256 KB before they answer."""
    before = len(streams.taken)
    line = f"Content-Length: {LARGE}" if framing == "length" else "Transfer-Encoding: chunked"
    part = bytes(2 * BLOCK)
    with Connection(before_streams.port) as connection:
        connection.send(head("PUT", "/v1/things/1", None, line))
        with suppress(OSError):  # the ingress may answer and close at once
            connection.send(part if framing == "length" else b"%x\r\n%b\r\n" % (len(part), part))
        response = connection.read_response("PUT")
    assert response.status == 401
    assert response.json()["reason"] == "no_credential"
    assert len(streams.taken) == before


@pytest.mark.row(Row.EXPECT)
@pytest.mark.parametrize("line", ["Content-Length: 4", "Transfer-Encoding: chunked"])
def test_a_client_that_waits_for_100_gets_it_and_its_body_arrives(
    line: str, before_streams: Ingress, streams: Streams, editor: Token
) -> None:
    with Connection(before_streams.port) as connection:
        connection.send(head("PUT", "/v1/things/1", editor, line, "Expect: 100-continue"))
        first = connection.socket.recv(len(b"HTTP/1.1 100"), 2)  # MSG_PEEK
        assert first == b"HTTP/1.1 100"
        connection.send(b"body" if "Length" in line else b"4\r\nbody\r\n0\r\n\r\n")
        response = connection.read_response("PUT")
    # Caddy passes on the application's own interim response too.
    assert (response.status, {*response.informational}) == (200, {100})
    assert response.body.decode() == f"4 {hashlib.sha256(b'body').hexdigest()}"


@pytest.mark.row(Row.EXPECT)
@pytest.mark.parametrize("line", ["Expect: 100-continue", "X-Expects: nothing"])
def test_a_refused_body_is_never_the_next_request(line: str, ingress: Ingress, behind: Recorder) -> None:
    smuggled = b"GET /public/smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"
    with Connection(ingress.port) as connection:
        connection.send(head("PUT", "/v1/things/1", None, f"Content-Length: {len(smuggled)}", line) + smuggled)
        assert connection.read_response("PUT").status == 401
        try:
            following = connection.exchange(head("GET", "/public/next", None))
        except (OSError, ConnectionEnded):
            following = None  # the ingress has closed the connection
    assert following is None or following.status == 200
    assert [request.target for request in behind.requests] == ([] if following is None else [b"/public/next"])


@pytest.mark.row(Row.EVENTS)
def test_an_event_reaches_the_client_before_the_next_one_is_sent(
    before_streams: Ingress, streams: Streams, editor: Token
) -> None:
    streams.second_event.clear()
    with Connection(before_streams.port) as connection:
        connection.send(head("GET", "/v1/channels/7/messages", editor, "Accept: text/event-stream"))
        received = b""
        while b"data: first\n\n" not in received:
            data = connection.socket.recv(BLOCK)
            assert data, received
            received += data
        assert received.startswith(b"HTTP/1.1 200")
        assert b"data: second" not in received
        streams.second_event.set()
        while b"data: second\n\n" not in received:
            data = connection.socket.recv(BLOCK)
            assert data, received
            received += data


@pytest.mark.row(Row.EVENTS)
def test_an_event_stream_needs_a_token(before_streams: Ingress, streams: Streams) -> None:
    before = len(streams.taken)
    with Connection(before_streams.port) as connection:
        assert connection.exchange(head("GET", "/v1/channels/7/messages", None)).status == 401
    assert len(streams.taken) == before


@pytest.mark.row(Row.HEAD)
def test_head_is_judged_like_get(ingress: Ingress, behind: Recorder, editor: Token, viewer: Token) -> None:
    behind.script = lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: x\r\n\r\n"
    with Connection(ingress.port) as connection:
        response = connection.request("HEAD", "/v1/things/1", headers=editor.bearer)
        assert (response.status, response.get("Content-Length"), response.body) == (200, "12345", b"")
        assert behind.last().request_line.startswith(b"HEAD /v1/things/1 ")
        behind.clear()
        refused = connection.request("HEAD", "/billing/x", headers=viewer.bearer)
        assert (refused.status, refused.body) == (403, b"")
    with Connection(ingress.port) as connection:
        refused = connection.request("HEAD", "/v1/things/1")
        assert (refused.status, refused.body) == (401, b"")
        assert 'Bearer realm="acme"' in refused.all("WWW-Authenticate")
        # Nothing that was sent as a body is taken for the next answer.
        assert connection.request("GET", "/v1/things/1").status == 401
    assert behind.requests == []


@pytest.mark.row(Row.PREFLIGHT)
def test_a_preflight_gets_the_verdict_of_its_route(ingress: Ingress, behind: Recorder, asked: Patgate) -> None:
    fields = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization",
    }
    behind.script = lambda request: (
        b"HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: https://app.example\r\n"
        b"Access-Control-Allow-Methods: PUT\r\n\r\n"
    )
    with Connection(ingress.port) as connection:
        response = connection.request("OPTIONS", "/public/x", headers=fields)
    assert (response.status, response.get("Access-Control-Allow-Methods")) == (204, "PUT")
    seen = behind.last()
    assert seen.request_line.startswith(b"OPTIONS /public/x ")
    assert {name: seen.only(name) for name in fields} == fields
    behind.clear()
    call = {"X-Forwarded-Method": "OPTIONS", "X-Forwarded-Uri": "/v1/things/1", "X-Forwarded-Host": "gateway"}
    with Connection(asked.forward_auth_port) as connection:
        own = connection.request("GET", "/caddy", headers=fields | call)
    with Connection(ingress.port) as connection:
        assert connection.request("OPTIONS", "/v1/things/1", headers=fields).status == own.status
    assert own.status >= 400
    assert behind.requests == []


ANSWERS = {
    401: b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Digest realm="app"\r\nContent-Length: 3\r\n\r\nwho',
    302: b"HTTP/1.1 302 Found\r\nLocation: https://login.example/?next=%2Fx\r\nContent-Length: 2\r\n\r\ngo",
    403: b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/x-app\r\nContent-Length: 2\r\n\r\nno",
    500: b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/x-app\r\nContent-Length: 4\r\n\r\noops",
    503: b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 77\r\nContent-Length: 4\r\n\r\nlate",
}
"""Answers of an application that look like refusals by patgate."""


@pytest.mark.row(Row.STATUSES)
@pytest.mark.parametrize("status", ANSWERS)
def test_an_answer_of_the_application_passes_unchanged(
    status: int, ingress: Ingress, behind: Recorder, editor: Token
) -> None:
    def answer(request: Recorded) -> bytes:
        return ANSWERS[status]

    behind.script = answer
    with Connection(ingress.port) as connection:
        response = connection.request("GET", "/v1/things/1", headers=editor.bearer)
    expected = ANSWERS[status].split(b"\r\n\r\n")
    lines = [line.decode().partition(": ") for line in expected[0].split(b"\r\n")[1:]]
    assert (response.status, response.body) == (status, expected[1])
    assert {name: response.all(name) for name, _, _ in lines} == {name: [value] for name, _, value in lines}
    assert not any(name.lower().startswith(b"x-patgate") for name, _ in response.headers)


@pytest.mark.row(Row.LONG)
def test_the_identity_of_a_token_with_many_scopes_arrives(ingress: Ingress, behind: Recorder, asked: Patgate) -> None:
    scopes = [f"things/{number:040}:read" for number in range(110)]
    token = asked.token(EDITOR, name=f"many scopes, {ingress.name}", scopes=scopes)
    with Connection(ingress.port) as connection:
        assert connection.request("GET", f"/v1/things/{109:040}", headers=token.bearer).status == 200
        assert sorted(behind.last().only("X-Auth-Scopes").split()) == sorted(scopes)
        behind.clear()
        assert connection.request("GET", f"/v1/things/{110:040}", headers=token.bearer).status == 403
    assert behind.requests == []


def with_headers(ingress: Ingress, count: int, token: Token | None) -> Response | None:
    """The response to a request with that many headers; None if the ingress closes the connection instead."""
    lines = [f"X-Number-{number}: {number}" for number in range(count - 1 - (token is not None))]
    with Connection(ingress.port) as connection:
        try:
            return connection.exchange(head("GET", "/v1/things/1", token, *lines))
        except (ConnectionEnded, ConnectionError):
            return None


@pytest.mark.row(Row.MANY)
def test_ninety_headers_pass(ingress: Ingress, behind: Recorder, editor: Token) -> None:
    response = with_headers(ingress, 90, editor)
    assert response is not None
    assert response.status == 200
    assert len([name for name, _ in behind.last().headers if name.lower().startswith(b"x-number-")]) == 88


@pytest.mark.row(Row.MANY)
@pytest.mark.parametrize("count", [101, 130, 1000])
def test_more_than_a_hundred_headers_are_refused(count: int, ingress: Ingress, behind: Recorder, editor: Token) -> None:
    for token in (editor, None):
        response = with_headers(ingress, count, token)
        assert response is None or 400 <= response.status < 600
    assert behind.requests == []
