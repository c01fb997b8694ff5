"""The client's address agrees with a plain reading by ``ipaddress``, and no claim of a client changes it."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.networks import AddressRanges, canonical, is_within
from proxy.core.request.client_address import MOST_HOPS, ClientAddresses, named_client

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
PEER = "10.0.0.1"
Parsed = IPv4Address | IPv6Address

proxies = st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8")
clients = st.ip_addresses().filter(lambda one: not is_within(one, TRUSTED))
ports = st.integers(0, 65535)
junk = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=30)


def written(address: Parsed, style: int, port: int) -> str:
    """The address as some proxy writes it."""
    if isinstance(address, IPv4Address):
        return (str(address), f"{address}:{port}", f"::ffff:{address}", f"[::ffff:{address}]:{port}")[style]
    return (str(address), f"[{address}]:{port}", address.exploded.upper(), f"[{address}]")[style]


entries = st.builds(written, proxies | clients, st.integers(0, 3), ports)
hops = st.builds(written, proxies, st.integers(0, 3), ports)


def plain(text: str) -> Parsed | None:
    """The oracle's reading of an entry."""
    text = text.strip(" \t")
    host = text
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or not (rest == "" or (rest[0] == ":" and is_port(rest[1:]))):
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not is_port(port):
            return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id is not None else address.ipv4_mapped or address
    return address


def is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5


def expected(chain: str) -> str:
    first = ""
    for number, entry in enumerate(reversed(chain.split(","))):
        address = plain(entry)
        if address is None or number >= MOST_HOPS:
            return ""
        if not any(address in network for network in TRUSTED):
            return str(address)
        first = str(address)
    return first


@given(st.lists(entries | junk, min_size=1, max_size=MOST_HOPS + 3), st.sampled_from([",", ", ", " ,\t"]))
def test_the_address_is_that_of_a_plain_reading(values: list[str], comma: str) -> None:
    chain = comma.join(values)
    assert named_client(chain.encode("latin-1"), TRUSTED) == expected(chain)


@given(junk | st.lists(entries, max_size=5).map(", ".join), clients, st.integers(0, 3), st.lists(hops, max_size=5))
def test_nothing_that_a_client_claims_changes_the_address_that_the_first_proxy_saw(
    claim: str, client: Parsed, style: int, behind: list[str]
) -> None:
    seen = [claim, written(client, style, 1), *behind]
    addresses = ClientAddresses(TRUSTED)
    found = addresses.of(PEER, [(b"x-forwarded-for", value.encode("latin-1")) for value in seen])
    mapped = client.ipv4_mapped if isinstance(client, IPv6Address) else None
    assert found == str(mapped or client)


@given(st.binary(max_size=300))
def test_any_bytes_name_an_address_or_nobody(chain: bytes) -> None:
    named = named_client(chain, TRUSTED)
    assert named == "" or str(ip_address(named)) == named


networks = st.one_of(
    st.builds(lambda base, bits: ip_network((int(base), bits), strict=False), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda base, bits: ip_network((base, bits), strict=False), st.ip_addresses(v=6), st.integers(0, 128)),
    # Few addresses, so that networks overlap and are adjacent.
    st.builds(
        lambda base, bits: ip_network((IPv4Address(base), bits), strict=False), st.integers(0, 15), st.integers(28, 32)
    ),
)


@given(st.lists(networks, max_size=8), st.ip_addresses() | st.integers(0, 17).map(IPv4Address))
def test_ranges_include_exactly_the_addresses_of_their_networks(
    held: list[ipaddress.IPv4Network | ipaddress.IPv6Network], address: Parsed
) -> None:
    ranges = AddressRanges(held)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert ranges.contain(str(address)) == any((mapped or address) in network for network in held)
    assert AddressRanges.of([text for text in canonical(held) if not text.startswith("::ffff:")]).texts == tuple(
        text for text in ranges.texts if not text.startswith("::ffff:")
    )


@given(st.lists(networks, max_size=6), networks)
def test_ranges_cover_a_network_exactly_if_they_include_every_address_of_it(
    held: list[ipaddress.IPv4Network | ipaddress.IPv6Network], wanted: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> None:
    left: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [wanted]
    for network in held:
        left = [part for one in left for part in without(one, network)]
    if str(wanted).startswith("::ffff:") or any(str(one).startswith("::ffff:") for one in held):
        return
    assert AddressRanges(held).cover([str(wanted)]) == [not left]


def without(
    one: ipaddress.IPv4Network | ipaddress.IPv6Network, other: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The parts of one network outside the other."""
    if isinstance(one, ipaddress.IPv4Network) and isinstance(other, ipaddress.IPv4Network):
        return [] if one.subnet_of(other) else [*one.address_exclude(other)] if other.subnet_of(one) else [one]
    if isinstance(one, ipaddress.IPv6Network) and isinstance(other, ipaddress.IPv6Network):
        return [] if one.subnet_of(other) else [*one.address_exclude(other)] if other.subnet_of(one) else [one]
    return [one]
