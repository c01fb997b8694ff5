"""Threat model §3: an ambiguous message is refused, its connection is closed, and no part passes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.plugin import EDITOR
from tests.support.pool import Pool
from tests.support.process import wait_until
from tests.support.rawhttp import Response
from tests.support.recorder import Recorder

SMUGGLED = b"GET /public/smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"
LINE_LIMIT = 300
HEAD_LIMIT = 2048
FIELD_LIMIT = 20
BODY_LIMIT = 1000


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    head = b"\r\n".join((b"POST /public/a HTTP/" + version, b"Host: gateway", *lines))
    return head + b"\r\n\r\n" + body


def get(*lines: bytes, line: bytes = b"GET /public/a HTTP/1.1", host: bytes = b"Host: gateway") -> bytes:
    return b"\r\n".join((line, host, *lines)) + b"\r\n\r\n"


CHUNKS = b"1\r\nx\r\n0\r\n\r\n"
TE = b"Transfer-Encoding: chunked"

FRAMINGS = {
    "length with coding": post(b"Content-Length: 11", TE, body=CHUNKS),
    "coding with length": post(TE, b"Content-Length: 11", body=CHUNKS),
    "length of nothing with coding": post(b"Content-Length: 0", TE, body=CHUNKS),
    "two lengths": post(b"Content-Length: 1", b"Content-Length: 2", body=b"x"),
    "two equal lengths": post(b"Content-Length: 1", b"Content-Length: 1", body=b"x"),
    "a list of equal lengths": post(b"Content-Length: 1, 1", body=b"x"),
    "an empty length": post(b"Content-Length:"),
    "a length of spaces": post(b"Content-Length:  \t "),
    "a positive length": post(b"Content-Length: +1", body=b"x"),
    "a negative length": post(b"Content-Length: -1", body=b"x"),
    "a length with an underscore": post(b"Content-Length: 0_2", body=b"xy"),
    "a length with an inner space": post(b"Content-Length: 1 1", body=b"x" * 11),
    "a hexadecimal length": post(b"Content-Length: 0x1", body=b"x"),
    "a length with a point": post(b"Content-Length: 1.0", body=b"x"),
    "a length in other digits": post(b"Content-Length: \xd9\xa1", body=b"x"),
    "a superscript length": post(b"Content-Length: \xb2", body=b"xy"),
    "a length beyond 64 bits": post(b"Content-Length: 18446744073709551617", body=b"x"),
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=CHUNKS),
    "chunked, gzip": post(b"Transfer-Encoding: chunked, gzip", body=CHUNKS),
    "chunked twice in a list": post(b"Transfer-Encoding: chunked, chunked", body=CHUNKS),
    "chunked twice in two lines": post(TE, TE, body=CHUNKS),
    "identity": post(b"Transfer-Encoding: identity", b"Content-Length: 1", body=b"x"),
    "an empty coding": post(b"Transfer-Encoding:", body=CHUNKS),
    "an unknown coding": post(b"Transfer-Encoding: xchunked", body=CHUNKS),
    "a quoted coding": post(b'Transfer-Encoding: "chunked"', body=CHUNKS),
    "a coding with a parameter": post(b"Transfer-Encoding: chunked;q=1", body=CHUNKS),
    "a coding behind a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=CHUNKS),
    "a coding on HTTP/1.0": post(TE, body=CHUNKS, version=b"1.0"),
    "a nominated length": post(b"Connection: content-length", b"Content-Length: 40", body=b"x" * 40),
    "a nominated coding": post(b"Connection: transfer-encoding", TE, body=CHUNKS),
}

HEADS = {
    "bare LF everywhere": b"GET /public/a HTTP/1.1\nHost: gateway\n\n",
    "bare LF behind the request line": b"GET /public/a HTTP/1.1\nHost: gateway\r\n\r\n",
    "bare LF in the fields": get(b"A: b\nC: d"),
    "bare LF at the end": b"GET /public/a HTTP/1.1\r\nHost: gateway\r\n\n",
    "bare CR in the fields": get(b"A: b\rC: d"),
    "bare CR behind the request line": b"GET /public/a HTTP/1.1\rHost: gateway\r\n\r\n",
    "bare CR at the end": b"GET /public/a HTTP/1.1\r\nHost: gateway\r\n\r\r\n\r\n",
    "a folded line": get(b"A: b", b" c"),
    "a folded line by tab": get(b"A: b", b"\tc"),
    "a folded first line": b"GET /public/a HTTP/1.1\r\n Host: gateway\r\n\r\n",
    "a folded length": post(b"Content-Length:", b" 1", body=b"x"),
    "a space before the colon": get(b"A : b"),
    "a tab before the colon": get(b"A\t: b"),
    "a space before the length's colon": post(b"Content-Length : 1", body=b"x"),
    "an empty name": get(b": b"),
    "no colon": get(b"A"),
    "a name with a space": get(b"A B: c"),
    "a name with a parenthesis": get(b"A(B): c"),
    "a name with a high byte": get(b"A\xc3\xa9: c"),
    "a name with NUL": get(b"A\0: c"),
    "NUL in a value": get(b"A: b\0c"),
    "a control byte in a value": get(b"A: b\x01c"),
    "an escape byte in a value": get(b"A: b\x1b[31m"),
    "DEL in a value": get(b"A: b\x7fc"),
    "a form feed in a value": get(b"A: b\x0cc"),
    "no Host": b"GET /public/a HTTP/1.1\r\n\r\n",
    "no Host on HTTP/1.0": b"GET /public/a HTTP/1.0\r\n\r\n",
    "two Hosts": get(b"Host: other"),
    "two equal Hosts": get(b"Host: gateway"),
    "an empty Host": get(host=b"Host:"),
    "a Host with a path and a login": get(host=b"Host: a/b@c"),
    "a Host with a login": get(host=b"Host: a@gateway"),
    "a Host with a space": get(host=b"Host: a b"),
    "a Host with a bad port": get(host=b"Host: gateway:8x"),
    "a Host in a list": get(host=b"Host: gateway, other"),
    "a Host with a query": get(host=b"Host: gateway?a"),
    "a Host with a high byte": get(host=b"Host: \xc3\xa9"),
    "a Host with a port beyond 16 bits": get(host=b"Host: h:99999"),
    "a Host with a port of octal looks": get(host=b"Host: gateway:0080"),
    "a Host in brackets that is no address": get(host=b"Host: [:::::::]"),
    "a Host with a zone": get(host=b"Host: [fe80::1%25eth0]"),
    "a Host that resolvers complete": get(host=b"Host: 127.1"),
    "a Host of octal numbers": get(host=b"Host: 0177.0.0.1"),
    "a Host that is one number": get(host=b"Host: 2130706433"),
    "an absolute form with a port beyond 16 bits": get(
        line=b"GET http://h:99999/public/a HTTP/1.1", host=b"Host: h:99999"
    ),
    "an alias of Host alone": get(host=b"Host_: gateway"),
    "HTTP/0.9": b"GET /public/a\r\n\r\n",
    "HTTP/1.2": get(line=b"GET /public/a HTTP/1.2"),
    "HTTP/1.10": get(line=b"GET /public/a HTTP/1.10"),
    "HTTP/2.0": get(line=b"GET /public/a HTTP/2.0"),
    "HTTP/01.1": get(line=b"GET /public/a HTTP/01.1"),
    "http/1.1": get(line=b"GET /public/a http/1.1"),
    "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "two spaces behind the method": get(line=b"GET  /public/a HTTP/1.1"),
    "two spaces behind the target": get(line=b"GET /public/a  HTTP/1.1"),
    "a space behind the version": get(line=b"GET /public/a HTTP/1.1 "),
    "tabs in the request line": get(line=b"GET\t/public/a\tHTTP/1.1"),
    "a space before the method": get(line=b" GET /public/a HTTP/1.1"),
    "a method that is no token": get(line=b"GE(T /public/a HTTP/1.1"),
    "a repeated Authorization": get(b"Authorization: Basic eDp5", b"Authorization: Basic eDp5"),
    "a nominated Host": get(b"Connection: host"),
    "a Connection that is no list of names": get(b"Connection: a b"),
}

CHUNKED = {
    "an empty size": b"\r\nx\r\n0\r\n\r\n",
    "a size with 0x": b"0x1\r\nx\r\n0\r\n\r\n",
    "a signed size": b"+1\r\nx\r\n0\r\n\r\n",
    "a negative size": b"-1\r\nx\r\n0\r\n\r\n",
    "a size with an underscore": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "a size with a leading space": b" 1\r\nx\r\n0\r\n\r\n",
    "a size with a trailing space": b"1 \r\nx\r\n0\r\n\r\n",
    "a size with other letters": b"g\r\nx\r\n0\r\n\r\n",
    "a size in high bytes": b"\xb9\r\nx\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000001\r\nx\r\n0\r\n\r\n",
    "a size that ends in a bare LF": b"1\nx\r\n0\r\n\r\n",
    "a size that ends in a bare CR": b"1\rx\r\n0\r\n\r\n",
    "a chunk that ends in a bare LF": b"1\r\nx\n0\r\n\r\n",
    "a chunk that ends in nothing": b"1\r\nx0\r\n\r\n",
    "a chunk longer than its size": b"1\r\nxy\r\n0\r\n\r\n",
    "a chunk shorter than its size": b"3\r\nx\r\n0\r\n\r\n",
    "a last chunk that ends in a bare LF": b"1\r\nx\r\n0\n\r\n",
    "trailers that end in a bare LF": b"1\r\nx\r\n0\r\nA: b\n\r\n",
    "a body that ends in a bare LF": b"1\r\nx\r\n0\r\n\n",
    "a folded trailer": b"1\r\nx\r\n0\r\nA: b\r\n c\r\n\r\n",
    "a trailer without a name": b"1\r\nx\r\n0\r\n: b\r\n\r\n",
    "a trailer with NUL": b"1\r\nx\r\n0\r\nA: \0\r\n\r\n",
    "an extension of 257 bytes": b"1;" + b"e" * 257 + b"\r\nx\r\n0\r\n\r\n",
    "an extension with a bare CR": b"1;a\rb\r\nx\r\n0\r\n\r\n",
    "an extension with a bare LF": b"1;a\nb\r\nx\r\n0\r\n\r\n",
    "an extension of nothing": b"1;\r\nx\r\n0\r\n\r\n",
    "an extension that is no name": b"1;[x=y\r\nx\r\n0\r\n\r\n",
    "an extension without its value": b"1;a=\r\nx\r\n0\r\n\r\n",
    "an extension with an open quote": b'1;a="b\r\nx\r\n0\r\n\r\n',
    "an extension with a space behind it": b"1;a \r\nx\r\n0\r\n\r\n",
    "a last chunk with an extension of nothing": b"1\r\nx\r\n0;\r\n\r\n",
    "an extension with NUL": b"1;a\0\r\nx\r\n0\r\n\r\n",
}


@pytest.fixture(scope="module")
def token(gateway: Patgate) -> Token:
    return gateway.token(EDITOR, name="framing")


@pytest.fixture(scope="module")
def limited(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    """A node with small limits."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"admin": ["*:*"]},
        "routes": [{"path": "/public/**", "upstream": "app", "access": "public"}],
        "limits": {
            "header_bytes": HEAD_LIMIT, "headers": FIELD_LIMIT, "request_line": LINE_LIMIT, "body": BODY_LIMIT,
        },
    }  # fmt: skip
    with gateways.lend(config) as node:
        yield node


def assert_nothing_went_on(gateway: Patgate, recorder: Recorder) -> None:
    """Send a later request, and assert that it is the only complete request that the backend got."""
    with gateway.connect() as connection:
        assert connection.request("GET", "/public/afterwards").status == 200
    assert [request.target for request in recorder.requests] == [b"/public/afterwards"]
    assert b"smuggled" not in b"".join(recorder.received)


def assert_refused(gateway: Patgate, recorder: Recorder, data: bytes, status: int = 400) -> None:
    with gateway.connect() as connection:
        response = connection.exchange(data + SMUGGLED, method="GET")
        assert response.status == status
        assert not response.keeps_alive
        assert connection.ended()
    assert_nothing_went_on(gateway, recorder)


@pytest.mark.parametrize("data", FRAMINGS.values(), ids=FRAMINGS)
def test_an_ambiguous_framing_is_refused_and_nothing_behind_it_is_read(
    data: bytes, gateway: Patgate, recorder: Recorder
) -> None:
    assert_refused(gateway, recorder, data)
    assert b"/public/a " not in b"".join(recorder.received), "not even the head went on"


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
def test_a_malformed_head_is_refused_and_nothing_behind_it_is_read(
    data: bytes, gateway: Patgate, recorder: Recorder
) -> None:
    assert_refused(gateway, recorder, data)
    assert b"/public/a " not in b"".join(recorder.received), "not even the head went on"


@pytest.mark.parametrize("body", CHUNKED.values(), ids=CHUNKED)
def test_a_malformed_chunk_is_refused_and_nothing_goes_on(body: bytes, gateway: Patgate, recorder: Recorder) -> None:
    assert_refused(gateway, recorder, post(TE, body=body))
    assert b"/public/a " not in b"".join(recorder.received), "the whole body was there to be judged before the head"


@pytest.mark.parametrize("body", CHUNKED.values(), ids=CHUNKED)
def test_a_malformed_chunk_behind_a_good_one_never_ends_the_message(
    body: bytes, gateway: Patgate, recorder: Recorder
) -> None:
    """The backend has the head already, so its connection must end before the message does."""
    with gateway.connect() as connection:
        connection.send(post(TE, body=b"4\r\ngood\r\n"))
        wait_until(lambda: b"good" in b"".join(recorder.received), "the first chunk at the backend")
        connection.send(body + SMUGGLED)
        response = connection.read_response("POST")
        assert response.status == 400
        assert connection.ended()
    assert_nothing_went_on(gateway, recorder)
    assert b"0\r\n\r\n" not in next(data for data in recorder.received if b"good" in data)


@pytest.mark.parametrize("value", [b"200-ok", b"", b"100-continue, 100-continue", b"100", b"100-continue;q=1"])
def test_an_unknown_expectation_is_refused(value: bytes, gateway: Patgate, recorder: Recorder) -> None:
    assert_refused(gateway, recorder, post(b"Expect: " + value, b"Content-Length: 1", body=b"x"), 417)


def test_a_repeated_expectation_is_refused(gateway: Patgate, recorder: Recorder) -> None:
    line = b"Expect: 100-continue"
    assert_refused(gateway, recorder, post(line, line, b"Content-Length: 1", body=b"x"), 417)


@pytest.mark.parametrize("name", [b"Authorization", b"authorization"])
def test_a_repeated_login_is_refused_though_each_is_good(
    name: bytes, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    login = b": Bearer " + token.value.encode()
    lines = (b"Authorization" + login, name + login)
    assert_refused(gateway, recorder, get(*lines, line=b"GET /v1/things/1 HTTP/1.1"))


def test_every_byte_of_a_refused_message_may_come_alone(gateway: Patgate, recorder: Recorder) -> None:
    with gateway.connect() as connection:
        for byte in FRAMINGS["length with coding"].partition(b"\r\n\r\n")[0] + b"\r\n\r\n":
            connection.send(bytes((byte,)))
        assert connection.read_response().status == 400
        assert connection.ended()
    assert_nothing_went_on(gateway, recorder)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content_Length: 40\r\n",
        b"Content.Length: 40\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"TRANSFER.ENCODING: chunked\r\n",
        b"Ho_st: other\r\nHost_: other\r\n",
    ],
    ids=repr,
)
def test_an_alias_of_a_framing_field_frames_nothing_and_stays_here(
    lines: bytes, gateway: Patgate, recorder: Recorder
) -> None:
    """Some backends treat it as the real field; the forwarded message has no body under both interpretations."""
    with gateway.connect() as connection:
        head = b"GET /public/first HTTP/1.1\r\nHost: gateway\r\n" + lines
        assert connection.exchange(head + b"\r\n").status == 200
        assert connection.request("GET", "/public/second").status == 200
    assert [request.target for request in recorder.requests] == [b"/public/first", b"/public/second"]
    assert recorder.requests[0].all("content-length") == recorder.requests[0].all("transfer-encoding") == []


def test_trailers_are_dropped(gateway: Patgate, recorder: Recorder, token: Token) -> None:
    lines = (TE, b"Authorization: Bearer " + token.value.encode(), b"Trailer: X-Auth-User")
    data = post(*lines, body=b"2\r\nhi\r\n0\r\nX-Auth-User: mallory\r\nContent-Length: 5\r\nHost: m\r\n\r\n")
    with gateway.connect() as connection:
        assert connection.exchange(data.replace(b"/public/a", b"/v1/things")).status == 200
        assert connection.request("GET", "/public/next").status == 200
    first, _ = recorder.requests
    assert first.body == b"2\r\nhi\r\n0\r\n\r\n"
    assert b"mallory" not in first.head + first.body
    assert first.all("trailer") == []


def test_chunks_are_framed_anew(gateway: Patgate, recorder: Recorder) -> None:
    """Extensions of up to 256 bytes are dropped; leading zeros and capitals are not passed on."""
    body = b"00A;" + b"e" * 256 + b'\r\n0123456789\r\n000000000000000b;a="b"\r\n0123456789a\r\n00\r\n\r\n'
    with gateway.connect() as connection:
        assert connection.exchange(post(TE, body=body)).status == 200
    seen = recorder.last().body
    assert b";" not in seen
    assert b"".join(seen.split(b"\r\n")[1:-3:2]) == b"01234567890123456789a"


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b" chunked\t"])
def test_the_coding_goes_on_as_exactly_chunked(value: bytes, gateway: Patgate, recorder: Recorder) -> None:
    with gateway.connect() as connection:
        assert connection.exchange(post(b"Transfer-Encoding:" + value, body=CHUNKS)).status == 200
    assert recorder.last().all("transfer-encoding") == [b"chunked"]
    assert recorder.last().all("content-length") == []


def padded(size: int) -> bytes:
    """A request with a head of exactly ``size`` bytes."""
    bare = get(b"X: ")
    return get(b"X: " + b"x" * (size - len(bare)))


@pytest.mark.parametrize(("over", "status"), [(-1, 200), (0, 200), (1, 431)])
def test_the_limit_of_a_heads_bytes_is_exact(over: int, status: int, limited: Patgate, recorder: Recorder) -> None:
    with limited.connect() as connection:
        assert connection.exchange(padded(HEAD_LIMIT + over)).status == status
        assert len(recorder.requests) == (status == 200)
        assert status == 200 or connection.ended()


@pytest.mark.parametrize(("over", "status"), [(-1, 200), (0, 200), (1, 431)])
def test_the_limit_of_a_heads_fields_is_exact(over: int, status: int, limited: Patgate, recorder: Recorder) -> None:
    lines = [b"X%d: y" % number for number in range(FIELD_LIMIT + over - 1)]
    with limited.connect() as connection:
        assert connection.exchange(get(*lines)).status == status
        assert len(recorder.requests) == (status == 200)
        assert status == 200 or connection.ended()


@pytest.mark.parametrize(("over", "status"), [(-1, 200), (0, 200), (1, 414)])
def test_the_limit_of_the_request_line_is_exact(over: int, status: int, limited: Patgate, recorder: Recorder) -> None:
    target = b"/public/" + b"a" * (LINE_LIMIT + over - len(b"GET /public/ HTTP/1.1"))
    with limited.connect() as connection:
        assert connection.exchange(get(line=b"GET " + target + b" HTTP/1.1")).status == status
        assert len(recorder.requests) == (status == 200)
        assert status == 200 or connection.ended()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("over", "status"), [(-1, 200), (0, 200), (1, 413)])
def test_the_limit_of_a_body_is_exact(
    over: int, status: int, chunked: bool, limited: Patgate, recorder: Recorder
) -> None:
    size = BODY_LIMIT + over
    if chunked:
        data = post(TE, body=b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"b" * size))
    else:
        data = post(b"Content-Length: %d" % size, body=b"b" * size)
    with limited.connect() as connection:
        assert connection.exchange(data).status == status
        assert len(recorder.requests) == (status == 200)
        assert status == 200 or connection.ended()


@pytest.mark.parametrize(
    ("length", "size"), [(b"0200", 200), (b"00", 0), (b"010", 10), (b"000000000000000007", 7)], ids=repr
)
def test_a_length_goes_on_as_the_number_that_was_read(
    length: bytes, size: int, gateway: Patgate, recorder: Recorder
) -> None:
    """A backend that reads it as octal would find another end of the body."""
    with gateway.connect() as connection:
        assert connection.exchange(post(b"Content-Length: " + length, body=b"b" * size)).status == 200
        assert connection.request("GET", "/public/next").status == 200
    first, _ = recorder.requests
    assert first.all("content-length") == [b"%d" % size]
    assert len(first.body) == size


def test_limits_do_not_depend_on_how_the_bytes_come(limited: Patgate, recorder: Recorder) -> None:
    """In one segment, with the last byte alone, cut in the middle, and a head without an end."""
    long_line = get(line=b"GET /public/" + b"a" * LINE_LIMIT + b" HTTP/1.1")
    cases = (
        (padded(HEAD_LIMIT), 200),
        (padded(HEAD_LIMIT + 1), 431),
        (long_line, 414),
        (get(line=b"GET /public/" + b"a" * HEAD_LIMIT + b" HTTP/1.1"), 414),
        (long_line[:-4] + b"\r\nX: " + b"x" * HEAD_LIMIT + b"\r\n\r\n", 414),
    )
    for data, status in cases:
        for cut in (len(data), len(data) - 1, len(data) // 2, LINE_LIMIT + 20):
            with limited.connect() as connection:
                connection.send(data[:cut])
                if cut < len(data):
                    with suppress(OSError):  # it may already be refused
                        connection.send(data[cut:])
                assert connection.read_response("GET").status == status, cut
    for data, status in ((b"GET /public/" + b"a" * LINE_LIMIT, 414), (padded(2 * HEAD_LIMIT)[:-4], 431)):
        with limited.connect() as connection:
            assert connection.exchange(data).status == status
    assert len(recorder.requests) == 4


def test_empty_lines_before_a_request_do_not_go_on(gateway: Patgate, recorder: Recorder) -> None:
    """RFC 9112 §2.2 lets a server ignore them; the sentinel checks that none are sent upstream."""
    answers: list[Response] = []
    with gateway.connect() as connection:
        for target in ("/public/1", "/public/2"):
            connection.send(b"\r\n\r\n")
            answers.append(connection.request("GET", target))
    assert [answer.status for answer in answers] == [200, 200]
    assert all(request.head.startswith(b"GET /public/") for request in recorder.requests)
