"""Valid and nearly valid heads: llhttp accepts what our parser accepts, and reads the same from it.

The comparison is that of the fuzzer (``tests.fuzz.targets.request_head``, ``response_head``); here hypothesis
generates the heads from their grammar.
"""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.request.request_reading import TOKEN
from proxy.gateway.http1.grammar import head_lines, without_fields
from proxy.gateway.phases.relay import Relay
from tests.fuzz.targets import response_head
from tests.fuzz.targets.request_head import KNOWN, check, make_parser
from tests.fuzz.targets.response_head import IdleOwner

TCHAR = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PARSER = make_parser()
RELAY = Relay(IdleOwner())

one_of = st.sampled_from


def some(alphabet: bytes, *, least: int = 0, most: int = 12) -> st.SearchStrategy[bytes]:
    return st.lists(one_of(list(alphabet)), min_size=least, max_size=most).map(bytes)


VALUE = bytes({0x09, *range(0x20, 0x7F), *range(0x80, 0x100)})
names = one_of(
    [b"Host", b"host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Authorization", b"Upgrade",
     b"X-API-Key", b"X-Auth-User", b"x_auth_user", b"X-Forwarded-For", b"content.length", b"Accept", b"Cookie", b"TE"]
) | some(TCHAR, least=1)  # fmt: skip
values = one_of(
    [b"gateway", b"5", b"0", b"chunked", b"keep-alive", b"close", b"100-continue", b"x-a, close", b"", b"a\tb"]
) | some(VALUE)
spaces = some(b" \t", most=2)
#: Lines that decide the framing, caller or target of a message: valid ones, invalid ones, and repetitions.
DECIDING = (
    b"Content-Length: 5", b"Content-Length: 05", b"Content-Length: +5", b"Content-Length: -0", b"Content-Length:",
    b"Content-Length: 5, 5", b"Content-Length: 5 5", b"Content-Length: 0_2", b"Content-Length: 0x5",
    b"Content-Length: 5;", b"Content-Length: " + b"9" * 19, b"content_length: 6", b"Content-Length : 5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked", b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: \"chunked\"",
    b"Transfer-Encoding:", b"Transfer-Encoding : chunked", b"transfer.encoding: chunked",
    b"Host: gateway", b"Host: other", b"Host:", b"Host: a,b", b"Host: a b", b"Host: a/b@c", b"Host : a",
    b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"Connection: x-a, close",
    b"Connection: content-length", b"Connection: a b", b"Upgrade: websocket", b"Upgrade: h2c", b"X-A: 1",
    b"Authorization: Basic YTpi", b"X-API-Key: a", b"Expect: 100-continue", b"Expect: x", b" folded: 1", b"novalue",
)  # fmt: skip
deciding = one_of(DECIDING).map(lambda line: b"\r\n" + line)
lines = st.tuples(names, spaces, values, spaces).map(lambda parts: b"\r\n%s:%s%s%s" % parts) | deciding
targets = one_of(
    [b"/", b"/v1/things", b"/v1/things?x=/../y", b"http://gateway/v1/things", b"*", b"gateway:443", b"/a%2fb"]
) | some(bytes(range(0x21, 0x7F)), most=10).map(lambda rest: b"/" + rest)
hosts = one_of([b"\r\nHost: gateway", b"\r\nhost:gateway \t", b"\r\nHOST: [::1]:80", b""]) | st.binary(
    min_size=1, max_size=1
).map(lambda wrong: b"\r\nHost: gate" + wrong + b"way")
heads = st.builds(
    lambda method, target, minor, host, before, after: (
        b"%s %s HTTP/1.%d%s%s%s\r\n\r\n" % (method, target, minor, b"".join(before), host, b"".join(after))
    ),
    one_of(sorted(KNOWN)) | some(TCHAR, least=1, most=6),
    targets,
    one_of([1, 1, 1, 0]),
    hosts,
    st.lists(lines, max_size=3),
    st.lists(lines, max_size=4),
)
splices = one_of([b"\n", b"\r", b"\r\n", b"\r\n ", b"\r\n\t", b"\r\r\n", b"\n\n", b"\r\n\r\n"]) | one_of(
    [
        *(bytes((byte,)) for byte in b"\0 \t:\x7f\x1b\x85\xa0\x0b\x0c#?%/"),
        b" :", b"", b"HTTP/1.1", b"HTTP/2.0",
        b"\r\nHost: other",
        b"\r\nContent-Length: 5",
        b"\r\nContent-Length: 5, 5",
        b"\r\nContent-Length: +5",
        b"\r\nTransfer-Encoding: chunked",
        b"\r\nTransfer-Encoding: \x0bchunked",
        b"\r\nTransfer-Encoding: chunked, identity",
        b"\r\nTransfer-Encoding : chunked",
        b"\r\nTransfer_Encoding: chunked",
    ]
)  # fmt: skip


@st.composite
def near_misses(draw: st.DrawFn) -> bytes:
    """A head in which a few bytes are replaced, inserted or removed."""
    head = draw(heads)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(head)))
        head = head[:at] + draw(splices | st.binary(max_size=2)) + head[at + draw(st.integers(0, 2)) :]
    return head


@given(heads)
@settings(max_examples=250)
def test_a_head_that_we_accept_is_read_alike_by_llhttp(head: bytes) -> None:
    check(head, PARSER)


@given(near_misses())
@settings(max_examples=250)
def test_a_nearly_valid_head_is_refused_or_read_alike_and_never_an_exception(head: bytes) -> None:
    check(head, PARSER)


def test_every_deciding_line_and_every_two_of_them_are_refused_or_read_alike() -> None:
    """The rest of the head is valid; each line is tried before and after the other fields."""
    accepted = 0
    for first, second in itertools.product((b"", *DECIDING), repeat=2):
        for version, method in ((b"1.1", b"POST"), (b"1.1", b"GET"), (b"1.0", b"PUT"), (b"1.2", b"GET")):
            host = b"" if b"Host:" in first + second else b"Host: gateway"
            lines_of = [method + b" /v1/things HTTP/" + version, first, host, b"X-B: 2", second]
            accepted += check(b"\r\n".join(filter(None, lines_of)) + b"\r\n\r\n", PARSER)
            status = [b"HTTP/%b 200 OK" % version, first, second]
            response_head.check(b"\r\n".join(filter(None, status)) + b"\r\n\r\n", RELAY)
    assert accepted > len(DECIDING)


@given(st.binary(max_size=60).map(lambda junk: junk + b"\r\n\r\n"))
def test_junk_is_never_an_exception(junk: bytes) -> None:
    check(junk, PARSER)


@given(st.lists(st.tuples(one_of([b"X-A", b"x-a", b"Accept", b"Cookie"]), some(VALUE)), max_size=6))
def test_valid_heads_are_accepted(fields: list[tuple[bytes, bytes]]) -> None:
    """The properties above are not vacuous: plain heads are accepted, and llhttp agrees."""
    block = b"".join(b"\r\n%s: %s" % field for field in fields)
    assert check(b"GET /v1/things?x HTTP/1.1\r\nHost: gateway%s\r\n\r\n" % block, PARSER)


@given(st.lists(lines, max_size=6).map(b"".join), st.sets(one_of([b"host", b"te", b"x-auth-user", b"accept"])))
def test_nominated_fields_go_and_all_others_stay(block: bytes, nominated: set[bytes]) -> None:
    expected = [line for line in block.split(b"\r\n")[1:] if line.partition(b":")[0].lower() not in nominated]
    assert without_fields(block, nominated) == b"".join(b"\r\n" + line for line in expected)


misnamed = st.builds(
    lambda name, at, wrong, value: b"\r\n%s%s%s:%s" % (name[:at], wrong, name[at:], value),
    some(TCHAR, least=1, most=3),
    one_of([0, 1, 3]),
    st.binary(min_size=1, max_size=1),
    values,
)


@given(st.lists(lines | misnamed | splices | st.binary(max_size=3), max_size=8).map(b"".join))
@settings(max_examples=250)
def test_field_lines_match_exactly_when_they_hold_no_control_character(block: bytes) -> None:
    taken = head_lines(b"GET / HTTP/1.1" + block)
    accepted = taken is not None and all(
        TOKEN.fullmatch(line.partition(b":")[0]) and b":" in line for line in taken[1:]
    )
    lines_of = block.split(b"\r\n")
    controls = [byte for line in lines_of for byte in line if (byte < 0x20 and byte != 0x09) or byte == 0x7F]
    named = all(
        colon and name and not set(name) - set(TCHAR) for name, colon, _ in (n.partition(b":") for n in lines_of[1:])
    )
    assert accepted == (named and not controls)


statuses = st.builds(
    lambda minor, code, phrase, block: b"HTTP/1.%d %s%s%s\r\n\r\n" % (minor, code, phrase, b"".join(block)),
    one_of([0, 1]),
    st.integers(100, 999).map(lambda n: b"%d" % n),
    st.just(b" ") | some(VALUE).map(lambda text: b" " + text),
    st.lists(lines, max_size=5),
)


@st.composite
def near_statuses(draw: st.DrawFn) -> bytes:
    head = draw(statuses)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(head)))
        head = head[:at] + draw(splices | st.binary(max_size=2)) + head[at + draw(st.integers(0, 2)) :]
    return head


@given(near_statuses())
@settings(max_examples=250)
def test_a_response_head_that_we_accept_is_read_alike_by_llhttp(head: bytes) -> None:
    response_head.check(head, RELAY)
