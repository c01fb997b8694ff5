"""Fuzz target: llhttp accepts every request head that patgate accepts, and reads the same from it.

llhttp (through httptools) is the oracle. Its refusals do not count where it is stricter than the standard or than
patgate needs to be:
* It has a fixed list of methods; for patgate any other token is a method for the route table. Such a head is parsed
  with GET instead.
* It allows spaces, but no tabs, after ``chunked``, and it obeys ``Proxy-Connection``, which is not in the standard.
* It refuses bytes of 0x80 and above in a target; patgate's grammar leaves them to ``core.request.target``, which also
  refuses them.
Where it is more lenient (an empty or duplicate ``Host``, lists in ``Transfer-Encoding``), patgate refuses the head and
llhttp is not consulted.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Any, Final

import httptools

from proxy.core.identity import PRESETS, IdentityHeaders, IdentityOutputs
from proxy.core.reasons import Reason
from proxy.core.request.claims import FAMILY_NAMES, fold
from proxy.core.request.target import canonical_path
from proxy.core.token import TokenFormat
from proxy.core.token_search import TokenSearch
from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.grammar import HEAD_END
from proxy.gateway.phases.parse import FORWARDED_FIELDS, HeadParser
from tests.fuzz.targets.target import Target
from tests.support.sentinel import REG_NAME

KNOWN: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
STRIPPED: Final = IdentityOutputs((IdentityHeaders(PRESETS["patgate"]),)).stripped
DROPPED: Final = STRIPPED | {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
    b"trailer", b"upgrade", b"http2-settings", b"transfer-encoding", b"authorization", b"x-api-key",
}  # fmt: skip
"""Folded names of fields with a meaning for the gateway, which are not passed on unchanged."""
SPECIAL: Final = frozenset((b"host", b"content-length", b"expect"))
_TABS: Final = re.compile(rb"(\r\ntransfer-encoding:[ \t]*chunked)[ \t]+(?=\r\n)", re.IGNORECASE)
"""White space after the coding, which may be a tab (RFC 9110 section 5.5); llhttp takes only spaces there."""
_OPTIONS_OF_CONNECTION: Final = {b"close", b"keep-alive", b"upgrade", b""}

Fields = list[tuple[bytes, bytes]]


def for_llhttp(head: bytes) -> bytes:
    """``head`` without the white space that only llhttp does not accept. The gateway writes framing itself."""
    return _TABS.sub(rb"\1", head)


def make_parser() -> HeadParser:
    return HeadParser(
        search=TokenSearch(TokenFormat("acme")),
        stripped=STRIPPED,
        presented=(b"x-api-key",),
        max_headers=100,
        max_request_line=8192,
        max_body=None,
        pseudonym=b"patgate",
    )


class Read:
    """The fields that llhttp reads, and whether it would keep the connection, which it knows only while parsing."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: Fields = []
        self.headers_complete = False
        self.keep_alive = False
        self.parser: Any = None

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.headers_complete = True
        self.keep_alive = self.parser.should_keep_alive()


def oracle(head: bytes) -> tuple[Read, Any, Exception | None]:
    read = Read()
    parser = read.parser = httptools.HttpRequestParser(read)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        return read, parser, None
    except httptools.HttpParserError as error:
        return read, parser, error
    return read, parser, None


def fields_of(block: bytes) -> Fields:
    """Field lines parsed naively: split at CRLF and at the first colon, without white space around the value."""
    parts = [line.partition(b":") for line in block.split(b"\r\n")[1:]]
    return [(name, value.strip(b" \t")) for name, _, value in parts]


def named(fields: Fields, name: bytes) -> list[bytes]:
    """The values of the fields with exactly this name, in any letter case."""
    return [value for key, value in fields if key.lower() == name]


def kept_of(fields: Fields, *, method: bytes, version: int) -> Fields:
    """The client's fields that are passed on: names of special fields in lower case, the others as received."""
    nominated = {
        option.strip(b" \t").lower() for value in named(fields, b"connection") for option in value.split(b",")
    } - _OPTIONS_OF_CONNECTION
    kept = []
    for name, value in fields:
        folded, lower = fold(name), name.lower()
        if (
            folded in DROPPED
            or folded.startswith(FAMILY_NAMES)
            or (folded in SPECIAL and lower != folded)
            or lower in nominated
        ):
            continue
        if lower == b"expect" and not version:
            continue
        if lower == b"max-forwards" and method == b"OPTIONS":
            value = b"%d" % (int(value) - 1)
        if lower == b"content-length":
            value = b"%d" % int(value)
        kept.append((lower if folded in SPECIAL else name, value.lower() if lower == b"expect" else value))
    return kept


def ours(data: bytes, parser: HeadParser) -> tuple[Exchange, bytes, Reason | None] | None:
    """The exchange, the field lines of its head and the parser's refusal; None without a whole head."""
    end = data.find(HEAD_END)
    if end < 0:
        return None
    head = data[:end]
    x = Exchange(None, 0, b"id")
    reason = parser.parse(x, head)
    return x, head[head.find(b"\r\n") :] if b"\r\n" in head else b"", reason


def check(data: bytes, parser: HeadParser) -> bool:
    """Whether patgate accepts the first head of ``data``; asserts that llhttp then does, and reads the same."""
    found = ours(data, parser)
    if found is None or found[2] is not None:
        return False
    x, block, _ = found
    fields = fields_of(block)
    kept = [(name.lower() if fold(name) in SPECIAL else name, value) for name, value in fields_of(x.kept)]
    expected = kept_of(fields, method=x.method, version=x.version)
    assert kept == expected, (kept, expected)
    check_credentials(x, fields)
    if canonical_path(x.path) is None:
        return False
    assert data.startswith(x.method + b" ")
    known = x.method in KNOWN
    head_bytes = data if known else b"GET" + data[len(x.method) :]
    read, llhttp, error = oracle(for_llhttp(head_bytes[: head_bytes.find(HEAD_END) + len(HEAD_END)]))
    assert error is None, error
    assert read.headers_complete
    assert llhttp.get_method() == (x.method if known else b"GET")
    assert llhttp.get_http_version() == f"1.{x.version}"
    path = x.path + x.query
    assert read.url.endswith(path)
    before = read.url[: len(read.url) - len(path)].lower()
    assert before in (b"", b"http://" + x.host.lower(), b"https://" + x.host.lower()), before
    # llhttp keeps white space after a value in some states; only the value is compared.
    assert [(name, value.strip(b" \t")) for name, value in read.fields] == fields
    check_body(x, fields)
    upgrades = llhttp.should_upgrade()
    options = b",".join(named(fields, b"connection")).lower().split(b",")
    assert not x.websocket or (upgrades and b"upgrade" in [option.strip(b" \t") for option in options])
    # llhttp says when a message needs its connection closed; patgate never keeps one that it would close.
    assert upgrades or read.keep_alive or not x.keep_alive or named(fields, b"proxy-connection")
    return True


def check_credentials(x: Exchange, fields: Fields) -> None:
    """Host and credentials come from exactly one field of exactly that name, and trusted fields are unchanged."""
    assert named(fields, b"host") == [x.host]
    assert REG_NAME.fullmatch(x.host), "a Host that is none"
    host = x.host.lower().decode("latin-1")
    if host.startswith("["):
        assert IPv6Address(x.host_name[1:-1]) == IPv6Address(host[1 : host.index("]")])
    else:
        assert host.startswith(x.host_name)
    assert named(fields, b"authorization") == ([] if x.authorization is None else [x.authorization])
    presented = [] if x.presented is None else x.presented.fields
    assert [(name, value) for name, value, _ in presented] == [
        (b"x-api-key", each) for each in named(fields, b"x-api-key")
    ]
    assert (x.forwarded or []) == [(name.lower(), value) for name, value in fields if name.lower() in FORWARDED_FIELDS]
    assert x.expects_continue == bool(named(fields, b"expect") and x.version)


def check_body(x: Exchange, fields: Fields) -> None:
    lengths, codings = named(fields, b"content-length"), named(fields, b"transfer-encoding")
    assert len(lengths) + len(codings) <= 1
    assert x.chunked == bool(codings)
    # llhttp accepts it; RFC 9112 section 6.1 calls it a framing error of the sender.
    assert x.version or not x.chunked
    assert x.content_length == (int(lengths[0]) if lengths else -1)
    assert (x.body is None) == x.body_done == (not codings and x.content_length <= 0)
    assert x.body is None or not x.websocket


def run(data: bytes) -> None:
    parser = make_parser()
    accepted = check(data, parser)
    # Again with the same parser, which has now cached the names and hosts.
    assert check(data, parser) == accepted


TARGET: Final = Target(
    name="request_head",
    run=run,
    seeds=(
        b"GET /v1/things?x=/../y HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"GET http://gateway/v1/things HTTP/1.1\r\nhost:gateway \t\r\nAccept: */*\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"HEAD / HTTP/1.0\r\nHOST: [::1]:80\r\nConnection: keep-alive\r\n\r\n",
        b"POST /v1/things HTTP/1.1\r\nHost: gateway\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        b"PUT /v1/things/7 HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n0\r\n\r\n",
        b"GET /v1/c HTTP/1.1\r\nHost: g\r\nConnection: Upgrade, x-a\r\nUpgrade: websocket\r\nX-A: b\r\nX_A: c\r\n\r\n",
        b"PURGE /a;x=y/%2e?%zz HTTP/1.1\r\nHost: g\r\nAuthorization: Basic eDp5\r\nX-API-Key: \x80\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\t\r\nProxy-Connection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: g\r\nX-Auth-User: root\r\nx_auth.user: root\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
    ),
    pieces=(
        b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b"\0", b"\x0b", b"\x7f", b"\x80", b"\x85", b":",
        b" :", b"GET ", b"CONNECT ", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"http://gateway", b"https://u@g", b"*",
        b"%2e", b"\r\nHost: other", b"\r\nHost: a,b", b",", b"@", b"/", b"\r\nContent-Length: 5",
        b"\r\nContent-Length: +5", b"\r\nContent-Length: 5, 5", b"\r\nContent-Length: 0",
        b"\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: chunked, identity",
        b"\r\nTransfer-Encoding: \x0bchunked", b"\r\nTransfer-Encoding : chunked", b"\r\nTransfer_Encoding: chunked",
        b"\r\nConnection: ", b"close", b"keep-alive", b"upgrade", b", ", b"\r\nUpgrade: websocket",
        b"\r\nUpgrade: h2c", b"\r\nExpect: 100-continue", b"\r\nAuthorization: Bearer ", b"\r\nX-API-Key: ",
        b"\r\nX-Auth-User: root", b"\r\nX-Forwarded-Host: a", b"\r\nMax-Forwards: 1", b"\r\nVia: 1.1 patgate",
        b"\r\nProxy-Connection: x", b"\r\nKeep-Alive: 5", b"\r\nTrailer: X", b"\r\nCookie: a",
    ),
)  # fmt: skip
