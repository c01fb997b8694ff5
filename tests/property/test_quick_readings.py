"""The fast parsers of a request line and of a path agree with the regular expressions that they replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.reasons import Reason
from proxy.core.request.target import _examine, canonical_path
from proxy.core.token import TokenFormat
from proxy.core.token_search import TokenSearch
from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.grammar import head_lines, trimmed
from proxy.gateway.phases.parse import HeadParser

SEARCH = TokenSearch(TokenFormat("acme"))

PARSER = HeadParser(
    search=SEARCH,
    stripped=(),
    presented=(b"x-api-key",),
    max_headers=9,
    max_request_line=9000,
    max_body=None,
)
LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]++) ([\x21-\x3e\x40-\x7e\x80-\xff]++)(\?[\x21\x22\x24-\x7e]*+)? HTTP/1\.([01])"
)
LINES = (
    b"GET /a/b?c=d HTTP/1.1",
    b"POST /%41? HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"GET http://a/b HTTP/1.1",
    b"G ?a HTTP/1.1",
)
PATHS = (b"/", b"/a.b/c", b"/.a", b"/a//b", b"/a/..", b"/a;b/", b"/%41", b"a/b", b"")
PIECES = [
    b"/",
    b".",
    b"a",
    b";",
    b"%2F",
    b"%2e",
    b"%",
    b"?",
    b"#",
    b" ",
    b"\t",
    b"\r\n",
    b"\n",
    b"\0",
    b"\x7f",
    b"\xff",
]
pieces = st.lists(st.sampled_from([*PIECES, b"GET ", b" HTTP/1.1"]), max_size=9).map(b"".join)


def edits(seed: bytes) -> Iterator[bytes]:
    """The seed with one byte inserted, replaced or removed."""
    for at in range(len(seed) + 1):
        yield seed[:at] + seed[at + 1 :]
        for byte in range(256):
            yield seed[:at] + bytes((byte,)) + seed[at:]
            yield seed[:at] + bytes((byte,)) + seed[at + 1 :]


def agree_on_line(line: bytes) -> None:
    x = Exchange(None, 0, b"")
    refused = PARSER.parse(x, line + b"\r\nHost: a") in (Reason.REQUEST_MALFORMED, Reason.HOST_INVALID)
    before = LINE.fullmatch(line) if head_lines(line) == [line] else None
    assert (before is None) == refused, line
    if before is not None:
        assert (x.method, x.query, x.version) == (before[1], before[3] or b"", int(before[4])), line
        assert x.path == before[2] or before[2][:1] != b"/", line


def test_every_single_edit_of_a_line_and_of_a_path_is_read_the_same() -> None:
    for line in LINES:
        for edited in edits(line):
            agree_on_line(edited)
    for path in PATHS:
        for edited in edits(path):
            assert canonical_path(edited) == _examine(edited), edited


@given(pieces)
def test_any_line_any_path_and_any_value_is_read_the_same(data: bytes) -> None:
    agree_on_line(data)
    assert canonical_path(data) == _examine(data)
    assert trimmed(data) == data.strip(b" \t")
