"""Heads: what our grammar and parser take, llhttp takes too, and reads the same out of it.

llhttp (through httptools) is the oracle. Where it is stricter than the standard, or than we need to be, its objection
is no objection of ours:
* It knows a fixed list of methods; any other token is a method to us and meets the route table.
* It refuses bytes of 0x80 and above in a target; our grammar leaves them to `core.target`, which refuses them too.
Where it is laxer (an empty `Host`, two of them, lists in `Transfer-Encoding`), we refuse and it is not asked.
"""

from __future__ import annotations

from typing import Any

import httptools
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.core.identity import PRESETS, fold, stripped_names
from proxy.core.reasons import Reason
from proxy.core.target import canonical_path
from proxy.gateway.exchange import Exchange
from proxy.gateway.grammar import HEAD_END, STATUS_LINE, TOKEN, head_lines, without_fields
from proxy.gateway.parse import HeadParser
from proxy.gateway.relay import Relay
from proxy.gateway.upstream import UpstreamConnection

TCHAR = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
STRIPPED = stripped_names(PRESETS["patgate"])
PARSER = HeadParser(stripped=STRIPPED, api_key=True, max_headers=100, max_request_line=8192, max_body=None)


class Nobody:
    """Nothing ends here: only the reading of heads is of interest."""

    def complete(self, x: Exchange) -> None:
        raise AssertionError

    def goes_on(self, x: Exchange) -> None:
        raise AssertionError

    def fail(self, x: Exchange, reason: Reason) -> None:
        raise AssertionError

    def retry(self, x: Exchange, connection: UpstreamConnection) -> bool:
        raise AssertionError


RELAY = Relay(Nobody())
KNOWN = [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"]

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
lines = st.tuples(names, spaces, values, spaces).map(lambda parts: b"\r\n%s:%s%s%s" % parts)
targets = one_of(
    [b"/", b"/v1/things", b"/v1/things?x=/../y", b"http://gateway/v1/things", b"*", b"gateway:443", b"/a%2fb"]
) | some(bytes(range(0x21, 0x7F)), most=10).map(lambda rest: b"/" + rest)
hosts = one_of([b"\r\nHost: gateway", b"\r\nhost:gateway \t", b"\r\nHOST: [::1]:80", b""])
heads = st.builds(
    lambda method, target, minor, host, before, after: (
        b"%s %s HTTP/1.%d%s%s%s\r\n\r\n" % (method, target, minor, b"".join(before), host, b"".join(after))
    ),
    one_of(KNOWN) | some(TCHAR, least=1, most=6),
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
    """A head in which a few bytes are replaced, put in or taken out."""
    head = draw(heads)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(head)))
        head = head[:at] + draw(splices | st.binary(max_size=2)) + head[at + draw(st.integers(0, 2)) :]
    return head


class Read:
    """What llhttp reads."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.headers_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.headers_complete = True


def oracle(head: bytes) -> tuple[Read, Any, Exception | None]:
    read = Read()
    parser = httptools.HttpRequestParser(read)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        return read, parser, None
    except httptools.HttpParserError as error:
        return read, parser, error
    return read, parser, None


def fields_of(block: bytes) -> list[tuple[bytes, bytes]]:
    """Field lines read naively: split at CRLF, at the first colon, white space around the value off."""
    parts = [line.partition(b":") for line in block.split(b"\r\n")[1:]]
    return [(name, value.strip(b" \t")) for name, _, value in parts]


def ours(data: bytes) -> tuple[Exchange, bytes, Reason | None] | None:
    """The exchange, its head's field lines and the parser's refusal; None if there is no whole head."""
    end = data.find(HEAD_END)
    if end < 0:
        return None
    head = data[:end]
    x = Exchange(None, 0, b"id")
    reason = PARSER.parse(x, head)
    return x, head[head.find(b"\r\n") :] if b"\r\n" in head else b"", reason


def check_against_oracle(data: bytes) -> bool:
    """Whether we accept `data`'s first head; if so, llhttp does too, and both read the same."""
    found = ours(data)
    if found is None or found[2] is not None:
        return False
    x, block, _ = found
    if canonical_path(x.path) is None or x.method not in KNOWN:
        return False
    read, parser, error = oracle(data[: data.find(HEAD_END) + len(HEAD_END)])
    assert error is None, error
    assert read.headers_complete
    assert parser.get_method() == x.method
    assert parser.get_http_version() == f"1.{x.version}"
    path = x.path + x.query
    assert read.url == path or read.url.lower() == b"http://" + x.host.lower() + path
    # llhttp keeps white space behind a value in some states; what is compared is the value.
    assert [(name, value.strip(b" \t")) for name, value in read.fields] == fields_of(block)
    check_body(x, fields_of(block), parser)
    return True


def check_body(x: Exchange, fields: list[tuple[bytes, bytes]], parser: Any) -> None:
    by_name: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        by_name.setdefault(name.lower(), []).append(value)
    lengths, codings = by_name.get(b"content-length", []), by_name.get(b"transfer-encoding", [])
    assert len(lengths) + len(codings) <= 1
    assert x.chunked == bool(codings)
    assert x.content_length == (int(lengths[0]) if lengths else -1)
    assert (x.body is None) == x.body_done == (not codings and x.content_length <= 0)
    if not parser.should_upgrade():
        # llhttp says when a message needs its connection closed; we never keep one that it would close.
        assert parser.should_keep_alive() or not x.keep_alive


@given(heads)
@settings(max_examples=150)
def test_a_head_that_we_accept_is_read_alike_by_llhttp(head: bytes) -> None:
    check_against_oracle(head)


@given(near_misses())
@settings(max_examples=250)
def test_a_nearly_valid_head_is_refused_or_read_alike_and_never_an_exception(head: bytes) -> None:
    check_against_oracle(head)


@given(st.binary(max_size=60).map(lambda junk: junk + b"\r\n\r\n"))
def test_junk_is_never_an_exception(junk: bytes) -> None:
    check_against_oracle(junk)


@given(st.lists(st.tuples(one_of([b"X-A", b"x-a", b"Accept", b"Cookie"]), some(VALUE)), max_size=6))
def test_valid_heads_are_accepted(fields: list[tuple[bytes, bytes]]) -> None:
    """The properties above are not empty: plain heads pass, and llhttp agrees."""
    block = b"".join(b"\r\n%s: %s" % field for field in fields)
    assert check_against_oracle(b"GET /v1/things?x HTTP/1.1\r\nHost: gateway%s\r\n\r\n" % block)


@given(heads)
@settings(max_examples=120)
def test_what_is_kept_for_the_backend_is_what_came_minus_what_has_a_meaning_here(head: bytes) -> None:
    found = ours(head)
    assume(found is not None)
    assert found is not None
    x, block, reason = found
    if reason is not None:
        return
    nominated = {
        option.strip(b" \t").lower()
        for name, value in fields_of(block)
        if name.lower() == b"connection"
        for option in value.split(b",")
    } - {b"close", b"keep-alive", b""}
    dropped = STRIPPED | {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"upgrade", b"http2-settings", b"transfer-encoding", b"authorization", b"x-api-key",
    }  # fmt: skip
    special = {b"host", b"content-length", b"expect"}
    expected = []
    for name, value in fields_of(block):
        folded, lower = fold(name), name.lower()
        if folded in dropped or (folded in special and lower != folded) or lower in nominated:
            continue
        if lower == b"expect" and not x.version:
            continue
        expected.append((lower if folded in special else name, value.lower() if lower == b"expect" else value))
    kept = [(name.lower() if fold(name) in special else name, value) for name, value in fields_of(x.kept)]
    assert kept == expected


@given(st.lists(lines, max_size=6).map(b"".join), st.sets(one_of([b"host", b"te", b"x-auth-user", b"accept"])))
def test_nominated_fields_go_and_all_others_stay(block: bytes, nominated: set[bytes]) -> None:
    expected = [line for line in block.split(b"\r\n")[1:] if line.partition(b":")[0].lower() not in nominated]
    assert without_fields(block, nominated) == b"".join(b"\r\n" + line for line in expected)


@given(st.lists(lines | splices | st.binary(max_size=3), max_size=8).map(b"".join))
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


class ReadResponse(Read):
    def on_status(self, status: bytes) -> None:
        self.url += status


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
    end = head.find(HEAD_END)
    taken = head_lines(head[:end]) if end >= 0 else None
    matched = None if taken is None else STATUS_LINE.fullmatch(taken[0])
    if taken is None or matched is None or RELAY._fields_of(taken, matched[1]) is None:
        return
    fields = fields_of(b"\r\n".join((b"", *taken[1:])))
    lengths = [value for name, value in fields if name.lower() == b"content-length"]
    codings = [value for name, value in fields if name.lower() == b"transfer-encoding"]
    plain = all(value.isdigit() and len(value) < 18 for value in lengths) and set(codings) <= {b"chunked"}
    upgrades = matched[2] == b"101" or any(name.lower() == b"upgrade" for name, _ in fields)
    if upgrades or len(lengths + codings) > 1 or not plain:
        return  # judged by `relay`, not by the grammar
    read = ReadResponse()
    parser = httptools.HttpResponseParser(read)
    parser.feed_data(head[: end + len(HEAD_END)])
    assert read.headers_complete
    assert parser.get_status_code() == int(matched[2])
    assert parser.get_http_version() == f"1.{matched[1].decode()}"
    assert read.url == (matched[3] or b"")[1:]
    assert [(name, value.strip(b" \t")) for name, value in read.fields] == fields
