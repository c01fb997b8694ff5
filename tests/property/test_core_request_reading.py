"""Reading a single request line agrees with the gateway's parser of whole heads."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from proxy.core.reasons import Reason
from proxy.core.request.request_reading import read_line
from proxy.core.token import TokenFormat
from proxy.core.token_search import TokenSearch
from proxy.gateway.exchange import Exchange
from proxy.gateway.phases.parse import HeadParser

SEARCH = TokenSearch(TokenFormat("acme"))

LONGEST = 60
HOST = b"api.example"
PIECES = (
    b"/", b"a", b"..", b"%2e", b"%", b"?", b"#", b";", b"*", b"//", b" ", b"\t", b"\x00", b"\x7f", b"\x80", b":", b"@",
    b"http://", b"HTTPS://", HOST, b"API.example", b"other.example", b":80", b"q=1", b"x" * 40,
)  # fmt: skip

targets = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)
methods = st.sampled_from((b"GET", b"POST", b"OPTIONS", b"CONNECT", b"Connect", b"get", b"PURGE", b"G(T", b"", b"\xff"))


@given(method=methods, target=targets)
@example(method=b"OPTIONS", target=b"*")
@example(method=b"GET", target=b"http://API.example/a?b")
@example(method=b"GET", target=b"/" + b"a" * (LONGEST - 14))
@example(method=b"GET", target=b"/" + b"a" * (LONGEST - 13))
def test_a_single_request_line_is_read_as_in_a_whole_head(method: bytes, target: bytes) -> None:
    parser = HeadParser(
        search=SEARCH,
        stripped=(),
        presented=(b"x-api-key",),
        max_headers=10,
        max_request_line=LONGEST,
        max_body=None,
    )
    x = Exchange(None, 0, b"")
    refusal = parser.parse(x, b"%b %b HTTP/1.1\r\nHost: %b" % (method, target, HOST))
    found = read_line(method, target, HOST, LONGEST)
    if refusal is None:
        assert found == (x.host_name, x.path)
    elif isinstance(found, Reason):
        # The parser refuses a control character in a head before it checks the length.
        assert found is refusal or (found, refusal) == (Reason.TARGET_TOO_LONG, Reason.REQUEST_MALFORMED)
    else:
        raise AssertionError(f"read as {found}, refused in a head for {refusal}")
