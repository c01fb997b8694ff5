"""Fuzz target: a whole client connection, from the client's bytes to the backend's requests and the client's responses.

The first byte of an input determines how the rest is cut, the second how the backend answers and how the client ends.

1. No exception escapes from a callback or a task, and input alone never causes a 5xx.
2. The wire sentinel accepts everything that was sent upstream, and every request has its response, in order.
3. A complete request at the backend is one that llhttp reads at the same position in the client's bytes: same method,
   target, fields and body, and otherwise only fields of the gateway.
4. How the bytes are cut changes nothing, up to the first refusal.
5. Every line of the access log is JSON and has the status that the client got.
6. The connection is in a state that may wait, and in EXCHANGE exactly while it has an exchange.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import httptools

from proxy.core.request.target import canonical_path
from proxy.gateway.downstream.connection_state import ConnectionState
from tests.fuzz.memory import MemoryLoop, MemoryTransport
from tests.fuzz.memory import run as run_in_memory
from tests.fuzz.targets.chunked_body import pieces, reference
from tests.fuzz.targets.request_head import SPECIAL, Fields, fields_of, kept_of, named
from tests.fuzz.targets.target import Target
from tests.fuzz.world import TOKEN, USER, Backend, Client, accept, make_gateway
from tests.unit.gateway.kit import Gateway

_EARLY: Final = 4
_STYLES: Final = (
    b"HTTP/1.1 200 OK\r\nX-Answer: %b\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nX-Answer: %b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\nX-Answer: %b\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nX-Answer: %b\r\n\r\nok",
    b"HTTP/1.1 409 Conflict\r\nX-Answer: %b\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
)
"""How the backend answers; the last one after the head, the others after the whole message."""
_SWITCH: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nX-Answer: %b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02ok"
)
_OWN: Final = frozenset(
    (
        b"x-auth-user", b"x-auth-email", b"x-auth-org", b"x-auth-role", b"x-auth-scopes", b"x-auth-token",
        b"x-auth-token-name", b"x-auth-kind", b"via", b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto",
        b"x-forwarded-host", b"connection", b"upgrade", b"transfer-encoding", b"authorization", b"x-api-key",
    )
)  # fmt: skip
_CLIENT_LEFT: Final = 499
_WAITING: Final = frozenset(ConnectionState) - {
    ConnectionState.OPENING, ConnectionState.STARTING, ConnectionState.NEXT, ConnectionState.CLOSED
}  # fmt: skip


class Answering(Backend):
    """Answers in one of the styles; closes the connection if that ends the response."""

    def __init__(self, number: int, style: int) -> None:
        super().__init__(number)
        self._style = style
        self._answered = 0

    def react(self, transport: MemoryTransport) -> None:
        while self.violation is None:
            ends = [0, *self.sentinel.ends]
            early = (
                self._style == _EARLY and b"\r\n\r\n" in self.received[ends[-1] :] and self._answered == len(ends) - 1
            )
            if self._answered >= len(ends) - 1 and not early:
                return
            head = self.received[ends[self._answered] :].partition(b"\r\n\r\n")[0]
            self._answered += 1
            answer = _STYLES[self._style] % named(fields_of(head), b"x-request-id")[0]
            if b"\r\nUpgrade: websocket\r\n" in head:
                answer = _SWITCH % named(fields_of(head), b"x-request-id")[0]
            elif head.startswith(b"HEAD ") and answer.endswith(b"ok"):
                answer = answer[:-2]
            elif head.startswith(b"HEAD "):
                answer = answer.partition(b"2\r\nok")[0]
            self.answer(transport, answer)
            if self._style >= _EARLY - 1:
                self.answer(transport, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """A parsed request: by llhttp from the client's bytes, or by the sentinel from the gateway's."""

    method: bytes
    target: bytes
    version: int
    fields: Fields
    body: bytes
    whole: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The observations of one connection. ``upstream`` has the complete requests by number, from 0."""

    upstream: dict[int, Message]
    answers: list[int]


class Reader:
    """Parses a stream of requests with llhttp, as far as it is valid."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._parser: Any = None
        self._begin()

    def read(self, data: bytes) -> None:
        self._parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._parser.feed_data(data)
        if self._head is not None:
            self._end(whole=False)

    def _begin(self) -> None:
        self._url, self._body = b"", b""
        self._fields: Fields = []
        self._head: tuple[bytes, int] | None = None

    def _end(self, *, whole: bool) -> None:
        assert self._head is not None
        method, version = self._head
        fields = [(name, value.strip(b" \t")) for name, value in self._fields]
        self.messages.append(
            Message(method=method, target=self._url, version=version, fields=fields, body=self._body, whole=whole)
        )

    def on_message_begin(self) -> None:
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are reported here as well.
        if self._head is None:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._head = (self._parser.get_method(), int(self._parser.get_http_version() == "1.1"))

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        self._end(whole=True)
        self._head = None


def sent_upstream(backends: list[Answering]) -> Iterator[tuple[int, Message]]:
    """Each complete request that a backend got, with the number that the gateway gave it."""
    for backend in backends:
        for raw in backend.messages:
            head, _, body = raw.partition(b"\r\n\r\n")
            line, _, block = head.partition(b"\r\n")
            method, target, _ = line.split(b" ")
            fields = fields_of(b"\r\n" + block)
            if named(fields, b"transfer-encoding"):
                decoded, _ = reference(body)
                assert decoded is not None and decoded[1] and not decoded[2]
                body = decoded[0]
            [number] = named(fields, b"x-request-id")
            yield (
                int(number[-8:], 16) - 1,
                Message(method=method, target=target, version=1, fields=fields, body=body, whole=True),
            )


def check_forwarded(sent: Message, read: Message) -> None:
    """Assert that the backend got the request that llhttp reads at its position."""
    assert sent.method == read.method
    assert read.target == sent.target or read.target.partition(b"://")[2].partition(b"/")[2] == sent.target[1:]
    assert read.whole, "the backend got a whole message where llhttp sees none"
    assert sent.body == read.body
    kept = kept_of(read.fields, method=read.method, version=read.version)
    got = [(name.lower() if name.lower() in SPECIAL else name, value) for name, value in sent.fields]
    assert got[: len(kept)] == kept, (got, kept)
    assert {name.lower() for name, _ in got[len(kept) :]} <= _OWN


def check_identity(sent: Message) -> None:
    """Assert that only the gateway's identity headers reach the backend, and never the token."""
    judged = canonical_path(sent.target.partition(b"?")[0])
    assert judged is not None
    users = named(sent.fields, b"x-auth-user")
    if judged[0].startswith(("/open/", "/ui/")) or judged[0] in ("/open", "/ui"):
        assert users == []
    elif judged[0].startswith("/report/"):
        assert users in ([USER.encode()], [b""])
    else:
        assert users == [USER.encode()]
    for name in (b"authorization", b"x-api-key"):
        assert not any(TOKEN.encode() in value for value in named(sent.fields, name))


def read_answers(received: bytes, methods: list[str], *, aborted: bool) -> tuple[list[tuple[int, bytes]], bytes]:
    """Status and id of each final response, by the framing of RFC 9112 section 6.3; and the bytes after the last."""
    answers: list[tuple[int, bytes]] = []
    rest = received
    while rest:
        head, whole, behind = rest.partition(b"\r\n\r\n")
        assert whole, rest
        line, _, block = head.partition(b"\r\n")
        assert line.startswith(b"HTTP/1.1 ")
        status, fields = int(line[9:12]), fields_of(b"\r\n" + block)
        rest = behind
        if 100 <= status < 200 and status != 101:
            continue
        assert len(answers) < len(methods), "more answers than requests"
        ids = named(fields, b"x-request-id") + named(fields, b"x-answer")
        assert len(ids) == 1, fields
        method = methods[len(answers)]
        answers.append((status, ids[0]))
        if status == 101:
            return answers, rest
        lengths, codings = named(fields, b"content-length"), named(fields, b"transfer-encoding")
        assert len(lengths) + len(codings) <= 1
        if method == "HEAD" or status in (204, 304):
            continue
        if lengths:
            assert len(rest) >= int(lengths[0]) or aborted
            rest = rest[int(lengths[0]) :]
        elif codings:
            decoded, _ = reference(rest)
            assert decoded is not None
            assert decoded[1] or aborted
            rest = decoded[2]
        else:
            assert named(fields, b"connection") == [b"close"]
            rest = b""
    return answers, rest


def check_state(gateway: Gateway) -> None:
    """Between two callbacks a connection is in a state that fits its exchange and its transport."""
    for connection in gateway.listener.connections:
        assert connection.state in _WAITING, ConnectionState(connection.state)
        assert (connection.exchange is not None) == (connection.state == ConnectionState.EXCHANGE)
        assert connection.transport is not None


def live(data: bytes, cuts: list[bytes], how: int) -> Outcome:
    """One connection from its beginning to its end."""
    backends: list[Answering] = []
    client = Client()
    gateway = make_gateway()

    def backend() -> Answering:
        backends.append(Answering(len(backends), how % len(_STYLES)))
        return backends[-1]

    async def story(loop: MemoryLoop) -> None:
        # Here a half-closed client does not count as disconnected, which would depend on timing.
        gateway.listener.limits = replace(gateway.listener.limits, half_close=True)
        transport = accept(gateway, loop, client)
        for part in cuts:
            transport.deliver(part)
            check_state(gateway)
            if how & 0x40:
                await loop.quiet()
                check_state(gateway)
        if how & 0x80:
            transport.deliver(None)
        await loop.quiet()
        check_state(gateway)
        gateway.recorder.flush()
        transport.reset()
        await loop.quiet()
        gateway.recorder.flush()
        assert not gateway.listener.connections
        await gateway.pipeline.close()
        assert gateway.active == 0, "an upstream exchange that is counted for ever"

    run_in_memory(backend, story)
    violations = [backend.violation for backend in backends if backend.violation is not None]
    assert not violations, violations
    methods = [line["method"] for line in gateway.access]
    statuses = [line["status"] for line in gateway.access]
    assert all(status < 500 for status in statuses), gateway.access
    answers, _ = read_answers(client.received, methods, aborted=client.aborted)
    got = [status for status, _ in answers]
    # A client that still waits at the end disconnects.
    assert statuses[: len(got)] == got or (statuses[-1:] == [_CLIENT_LEFT] and statuses[:-1] == got[:-1]), (
        statuses,
        got,
    )
    assert set(statuses[len(got) :]) <= {_CLIENT_LEFT}, (statuses, got)
    assert [number for _, number in answers] == [line["decision"].encode() for line in gateway.access][: len(got)]
    upstream = dict(sent_upstream(backends))
    assert sum(len(backend.messages) for backend in backends) == len(upstream), "a request sent twice"
    return Outcome(upstream=upstream, answers=got)


def run(data: bytes) -> None:
    cut, how, stream = (*data[:2], 0, 0)[0], (*data[:2], 0, 0)[1], data[2:]
    whole = live(data, [stream], how)
    reader = Reader()
    reader.read(stream)
    for number, sent in whole.upstream.items():
        check_identity(sent)
        if number < len(reader.messages):
            check_forwarded(sent, reader.messages[number])
    cuts = pieces(stream, cut)
    if len(cuts) > 1:
        again = live(data, cuts, how)
        if how % len(_STYLES) != _EARLY:
            # A refusal before the whole body has arrived closes the connection; otherwise it may stay open.
            alike = list(itertools.takewhile(_good, whole.answers))
            assert list(itertools.takewhile(_good, again.answers)) == alike
            for number in range(len(alike)):
                assert again.upstream.get(number) == whole.upstream.get(number)


def _good(status: int) -> bool:
    return status < 400


_LOGIN: Final = b"Host: g\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
_END: Final = b" HTTP/1.1\r\nHost: g\r\n\r\n"
_G: Final = b"\r\nHost: g\r\n\r\n"
_STOP: Final = b"\r\n\r\n"
_FRAME: Final = b"\x81\x82\0\0\0\0hi"

TARGET: Final = Target(
    name="connection",
    run=run,
    seeds=(
        b"\x17\x01GET /open/a HTTP/1.1\r\nHost: g\r\n\r\nHEAD  HTTP/1.1\r\nHost: g\r\n\r\n",
        b"\x00\x00GET /v1/things/7?a=b HTTP/1.1\r\n" + _LOGIN + b"\r\n",
        b"\x07\x01GET /open/a" + _END + b"HEAD /ui/b" + _END + b"GET /shut/" + _END,
        b"\x01\x40POST /v1/things HTTP/1.1\r\n" + _LOGIN + b"Content-Length: 5\r\n\r\nhelloGET /open/" + _END,
        b"\x20\x82PUT /v1/a/7 HTTP/1.1\r\n" + _LOGIN + b"Transfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\nX:" + _STOP,
        b"\x00\xc3GET /ui/a HTTP/1.0\r\nHost: g\r\nConnection: keep-alive, x\r\nX: b\r\nAuthorization: X a" + _STOP,
        b"\x30\x44POST /open/a HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
        b"\x90\x40GET /v1/chat HTTP/1.1\r\n" + _LOGIN + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + _FRAME,
        b"\x00\x00\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: g\r\n\r\n",
        b"\x05\x00GET http://g/open/%61 HTTP/1.1\r\nX-Auth-User: root\r\nx_auth_user: root\r\nX-API-Key: a" + _G,
        b"\x00\x00GET /report/7 HTTP/1.1\r\nHost: g\r\n\r\nBAD\r\n\r\n",
        b"\x10\x00PURGE /open/x HTTP/1.1\r\nHost: g\r\nMax-Forwards: 0\r\nVia: 1.1 a\r\n\r\n",
    ),
    pieces=(
        b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n ", b"\0", b"\x7f", b"\x80", b":", b" :", b"GET ", b"POST ",
        b"HEAD ", b"OPTIONS ", b" HTTP/1.1\r\nHost: g\r\n", b" HTTP/1.0\r\n", b"/open/a", b"/ui/a", b"/v1/things",
        b"/report/7", b"/shut/", b"http://g", b"%2e", b"%2f", b";", b"?", b"//", b"\r\nHost: other",
        b"\r\nContent-Length: 5", b"\r\nContent-Length: 0", b"\r\nTransfer-Encoding: chunked",
        b"\r\nTransfer_Encoding: chunked", b"0\r\n\r\n", b"1\r\nx\r\n", b"hello", b"\r\nConnection: ", b"close",
        b"keep-alive", b"upgrade", b", ", b"\r\nUpgrade: websocket", b"\r\nExpect: 100-continue",
        b"\r\nAuthorization: Bearer " + TOKEN.encode(), b"\r\nX-API-Key: " + TOKEN.encode(),
        b"\r\nAuthorization: Basic YTpi", b"\r\nX-Auth-User: root", b"\r\nX-Forwarded-For: 1.2.3.4",
        b"\r\nMax-Forwards: 1", b"\r\nVia: 1.1 a", b"\r\nTE: trailers",
    ),
    longest=1500,
)  # fmt: skip
