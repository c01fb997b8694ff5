"""Fuzz target: arbitrary bytes as a backend's response, through the whole gateway to a client.

The first byte of an input determines how the rest is cut, the second the request and how the backend ends.

1. No exception escapes; an invalid response becomes a 502, if its head has not been sent yet.
2. A response that the client reads as complete is complete, with the backend's status, interim responses and body.
3. A truncated response closes the client's connection.
4. A connection returns to its pool only if the response ended cleanly without bytes after it. The next request, on the
   same client connection if that is still open, gets its own response.
5. Hop-by-hop fields, and fields that ``Connection`` nominates, are not passed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tests.fuzz.memory import MemoryLoop, MemoryTransport
from tests.fuzz.memory import run as run_in_memory
from tests.fuzz.targets.chunked_body import pieces, reference
from tests.fuzz.targets.request_head import Fields, fields_of, named
from tests.fuzz.targets.target import Target
from tests.fuzz.world import TOKEN, Backend, Client, accept, make_gateway

_LOGIN: Final = b"Host: g\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
_REQUESTS: Final = (
    b"GET /v1/things HTTP/1.1\r\n" + _LOGIN + b"\r\n",
    b"GET /open/a HTTP/1.0\r\nHost: g\r\n\r\n",
    b"HEAD /v1/things HTTP/1.1\r\n" + _LOGIN + b"\r\n",
    b"GET /v1/things HTTP/1.1\r\n" + _LOGIN + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST /v1/things HTTP/1.1\r\n" + _LOGIN + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    b"GET /open/a HTTP/1.0\r\nHost: g\r\nConnection: keep-alive\r\n\r\n",
    b"PUT /v1/things/7 HTTP/1.1\r\n" + _LOGIN + b"Content-Length: 10\r\n\r\nabc",
    b"POST /v1/things HTTP/1.1\r\n" + _LOGIN + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
)
_UNFINISHED: Final = (6, 7)
_NEXT: Final = b"GET /open/next HTTP/1.1\r\nHost: g\r\n\r\n"
_NEXT_ANSWER: Final = b"HTTP/1.1 200 OK\r\nX-Next: yes\r\nContent-Length: 4\r\n\r\nnext"
_ENDS: Final = 0x10
_RESETS: Final = 0x20
_HOP_BY_HOP: Final = frozenset((b"keep-alive", b"proxy-connection", b"te", b"trailer"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One final response, read from a stream by RFC 9112 section 6.3. ``behind`` has the bytes after it."""

    status: int
    fields: Fields
    interim: list[int]
    payload: bytes
    whole: bool
    until_end: bool
    behind: bytes


def read(stream: bytes, *, head_only: bool, ended: bool) -> Answer | None:
    """The first final response in ``stream``, parsed naively; None without a whole head.

    ``ended``: the sender has ended the connection properly after that.
    """
    interim: list[int] = []
    while True:
        head, found, rest = stream.partition(b"\r\n\r\n")
        if not found:
            return None
        line, _, block = head.partition(b"\r\n")
        status, fields = int(line[9:12]), fields_of(b"\r\n" + block)
        if not 100 <= status < 200 or status == 101:
            break
        interim.append(status)
        stream = rest
    lengths, codings = named(fields, b"content-length"), named(fields, b"transfer-encoding")
    payload, whole, until_end, behind = b"", True, False, rest
    if status == 101:
        payload, whole, behind = rest, ended, b""
    elif head_only or status in (204, 304):
        pass
    elif codings:
        decoded, _ = reference(rest)
        if decoded is None:
            # It is not complete; how far it is valid does not matter.
            payload, whole, behind = b"", False, b""
        else:
            payload, whole, behind = decoded
    elif lengths:
        size = int(lengths[0])
        payload, whole, behind = rest[:size], len(rest) >= size, rest[size:]
    else:
        payload, whole, until_end, behind = rest, ended, True, b""
    return Answer(
        status=status, fields=fields, interim=interim, payload=payload, whole=whole, until_end=until_end, behind=behind
    )


class Scripted(Backend):
    """Answers the first request with the given bytes, in parts, and every later one with the same response."""

    parts: list[bytes]

    def __init__(self, number: int, script: Script) -> None:
        super().__init__(number)
        self._script = script
        self._answered = 0

    def react(self, transport: MemoryTransport) -> None:
        script = self._script
        if not script.begun and b"\r\n\r\n" in self.received:
            script.begun = True
            script.backend, script.transport = self, transport
            self._answered = 1
        while self._answered < len(self.sentinel.ends) and (script.backend is not self or script.over):
            self._answered += 1
            self.answer(transport, _NEXT_ANSWER)


class Script:
    """The state of the response to the first request: its connection, and whether it was sent completely."""

    def __init__(self) -> None:
        self.begun = False
        self.over = False
        self.backend: Scripted | None = None
        self.transport: MemoryTransport | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The observations after the response was sent, and then of the following request."""

    first: bytes
    ended: bool
    aborted: bool
    pooled: bool
    second: bytes | None
    access: list[dict[str, Any]]


def live(parts: list[bytes], how: int) -> Outcome:
    backends: list[Scripted] = []
    script, client, gateway = Script(), Client(), make_gateway()

    def backend() -> Scripted:
        backends.append(Scripted(len(backends), script))
        return backends[-1]

    async def story(loop: MemoryLoop) -> tuple[bytes, bool, bool, bool, bytes | None]:
        transport = accept(gateway, loop, client)
        transport.deliver(_REQUESTS[how % len(_REQUESTS)])
        await loop.quiet()
        assert script.backend is not None and script.transport is not None
        for part in parts:
            script.backend.answer(script.transport, part)
            await loop.quiet()
        if how & _ENDS:
            script.transport.deliver(None)
        elif how & _RESETS:
            script.transport.reset()
        script.over = True
        await loop.quiet()
        first, ended, aborted = client.received, client.ended, client.aborted
        pooled = gateway.idle > 0
        second = None
        if not ended and (read(first, head_only=how % len(_REQUESTS) == 2, ended=False) is not None):
            transport.deliver(_NEXT)
            await loop.quiet()
            second = client.received[len(first) :]
        gateway.recorder.flush()
        transport.reset()
        await loop.quiet()
        gateway.recorder.flush()
        await gateway.pipeline.close()
        await loop.quiet()
        assert gateway.active == 0, "an upstream exchange that is counted for ever"
        return first, ended, aborted, pooled, second

    first, ended, aborted, pooled, second = run_in_memory(backend, story)
    violations = [each.violation for each in backends if each.violation is not None]
    assert not violations, violations
    return Outcome(first=first, ended=ended, aborted=aborted, pooled=pooled, second=second, access=list(gateway.access))


def check(outcome: Outcome, sent: bytes, how: int) -> None:
    kind = how % len(_REQUESTS)
    head_only, old = kind == 2, _REQUESTS[kind].partition(b"\r\n")[0].endswith(b"1.0")
    got = read(outcome.first, head_only=head_only, ended=outcome.ended and not outcome.aborted)
    if got is None:
        assert not outcome.first or outcome.first.startswith(b"HTTP/1.1 1")
        # No final response: the gateway must still be waiting for one, and must not have given up silently.
        assert not outcome.ended or outcome.access
        return
    connection = [value.lower() for value in named(got.fields, b"connection")]
    assert connection in ([], [b"close"], [b"keep-alive"], [b"upgrade"])
    assert not _HOP_BY_HOP & {name.lower() for name, _ in got.fields}
    assert len(named(got.fields, b"content-length") + named(got.fields, b"transfer-encoding")) <= 1
    assert not (old and (got.interim or named(got.fields, b"transfer-encoding")))
    if got.status == 502 and named(got.fields, b"content-type") == [b"application/problem+json"]:
        assert got.whole and not got.behind
        assert not outcome.pooled, "a connection with a bad response is kept"
        return
    expected = read(sent, head_only=head_only, ended=bool(how & _ENDS))
    assert expected is not None
    assert got.status == expected.status
    assert old or got.interim == expected.interim
    nominated = {
        option.strip(b" \t").lower() for value in named(expected.fields, b"connection") for option in value.split(b",")
    }
    assert not nominated & {name.lower() for name, _ in got.fields} - {
        b"upgrade",
        b"connection",
        b"content-length",
        b"",
    }
    assert expected.payload.startswith(got.payload) or not expected.whole
    if got.whole and got.status != 101:
        assert expected.whole, "a truncated response looks complete"
        assert got.payload == expected.payload
        assert not got.behind, "bytes after the response"
    if expected.whole and got.status != 101:
        assert got.whole and not outcome.aborted, "a complete response is truncated"
    if not expected.whole and how & (_ENDS | _RESETS):
        assert outcome.ended, "a connection waits for the rest of a truncated response"
    if outcome.pooled:
        assert expected.whole and not expected.behind and not expected.until_end and kind not in _UNFINISHED
        assert b"close" not in nominated
    if outcome.second is not None and got.whole and got.status != 101:
        assert outcome.second.startswith(b"HTTP/1.1 200 OK\r\n") and outcome.second.endswith(b"\r\n\r\nnext"), outcome
        assert kind not in _UNFINISHED


def run(data: bytes) -> None:
    cut, how, sent = (*data[:2], 0, 0)[0], (*data[:2], 0, 0)[1], data[2:]
    check(live([sent] if sent else [], how), sent, how)
    cuts = pieces(sent, cut)
    if len(cuts) > 1:
        check(live(cuts, how), sent, how)


TARGET: Final = Target(
    name="answer",
    run=run,
    seeds=(
        b"\x00\x00HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
        b"\x01\x10HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"\x05\x11HTTP/1.0 200 OK\r\nConnection: x-a\r\nX-A: b\r\n\r\nhello",
        b"\x20\x20HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"\x20\x10HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"\x00\x10HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"\x00\x20HTTP/1.0 200 OK\r\n\r\nhello",
        b"\x25\x00HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"\x00\x00HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK",
        b"\x03\x02HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"\x20\x03HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi",
        b"\x00\x04HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 None\r\n\r\n",
        b"\x30\x05HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"\x00\x06HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig",
        b"\x00\x07HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
        b"\x00\x30HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"\x00\x10HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nKeep-Alive: 5\r\n\r\n",
        b"\x00\x10",
    ),
    pieces=(
        b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n ", b"\0", b"\x7f", b"\x80", b":", b" :", b"HTTP/1.1 ", b"HTTP/1.0 ",
        b"HTTP/1.1 100 \r\n\r\n", b"HTTP/1.1 101 \r\n", b" 200 ", b" 204 ", b" 304 ", b"\r\nContent-Length: 5",
        b"\r\nContent-Length: 0", b"\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: gzip",
        b"\r\nConnection: ", b"close", b"keep-alive", b"upgrade", b"x-a", b", ", b"\r\nUpgrade: websocket",
        b"\r\nKeep-Alive: 5", b"5\r\nhello\r\n", b"0\r\n\r\n", b"hello", b"\r\nTrailer: X", b"\r\nContent_Length: 3",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
)  # fmt: skip
