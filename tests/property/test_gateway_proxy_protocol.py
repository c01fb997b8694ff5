"""The PROXY protocol parser, with any input that is cut anywhere."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import example, given
from hypothesis import strategies as st

from proxy.gateway.downstream.proxy_protocol import MAX_HEADER, Header, ProxyHeaderError, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FAMILIES = {4: 0x11, 6: 0x21}
PORTS = st.integers(0, 65535)
EXTENSIONS = st.lists(
    st.tuples(st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=40)), max_size=4
).map(lambda pairs: b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in pairs))
BEGINNINGS = st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 1.2.3.4 ", b"\r\n", SIGNATURE, SIGNATURE + b"\x21\x11\x00"])


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, str]:
    """A header as a load balancer writes it, and its client address."""
    version = draw(st.sampled_from([4, 6]))
    addresses: st.SearchStrategy[IPv4Address | IPv6Address] = (
        st.ip_addresses(v=4) if version == 4 else st.ip_addresses(v=6)
    )
    source, target = draw(addresses), draw(addresses)
    ports = draw(PORTS), draw(PORTS)
    if draw(st.booleans()):
        return f"PROXY TCP{version} {source} {target} {ports[0]} {ports[1]}\r\n".encode(), str(source)
    block = source.packed + target.packed + struct.pack("!HH", *ports) + draw(EXTENSIONS)
    return SIGNATURE + struct.pack("!BBH", 0x21, FAMILIES[version], len(block)) + block, str(source)


def outcome(data: bytes) -> Header | str | None:
    try:
        return parse(data)
    except ProxyHeaderError:
        return "bad"


@given(headers(), st.binary(max_size=60))
def test_what_a_balancer_writes_is_understood_and_nothing_behind_it_is_taken(
    written: tuple[bytes, str], behind: bytes
) -> None:
    header, source = written
    found = parse(header + behind)
    assert found is not None and found.source is not None
    client = ip_address(source)
    mapped = client.ipv4_mapped if isinstance(client, IPv6Address) else None
    assert (found.length, ip_address(found.source)) == (len(header), mapped or client)
    assert all(parse(header[:size]) is None for size in range(len(header)))


@given(BEGINNINGS, st.binary(max_size=150), st.binary(max_size=150))
@example(b"", b"PROXY UNKNOWN\r", b"\n")
def test_what_was_said_of_a_beginning_holds_when_more_comes(beginning: bytes, middle: bytes, end: bytes) -> None:
    """An invalid beginning stays invalid, a header stays the same, and only an incomplete one may change."""
    first, then = outcome(beginning + middle), outcome(beginning + middle + end)
    assert first is None or first == then
    if isinstance(then, Header):
        assert then.length <= min(MAX_HEADER, len(beginning + middle + end))
        if then.source is not None:
            ip_address(then.source)
    if first is None:
        assert len(beginning + middle) < MAX_HEADER
