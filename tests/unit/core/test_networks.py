"""Networks: which texts are one, what they include, and the IP ranges of a token."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from proxy.core.networks import AddressRanges, NetworkSyntaxError, canonical, is_within, parse_network


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("FD00::/8", "fd00::/8"),
        ("2001:db8:0::7", "2001:db8::7/128"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_a_network_or_an_address_is_a_network(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    "text",
    ["", "10", "10.0.0.0/33", "010.0.0.0/8", "10.0.0.0/8 ", "a", "fe80::1%eth0", "fe80::%1/64", "::1/129", "1" * 65],
)
def test_any_other_text_is_no_network(text: str) -> None:
    with pytest.raises(NetworkSyntaxError, match=r"^is not a network; write one such as 10\.0\.0\.0/8 or fd00::/8$"):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "meant"), [("10.0.0.1/8", "10.0.0.0/8"), ("10.1.0.0/8", "10.0.0.0/8"), ("fd00::1/8", "fd00::/8")]
)
def test_an_address_inside_a_network_is_refused_with_the_network_that_may_be_meant(text: str, meant: str) -> None:
    with pytest.raises(NetworkSyntaxError, match=f"names an address inside a network; write {meant}"):
        parse_network(text)


def test_a_network_of_mapped_addresses_is_refused_because_it_would_never_match() -> None:
    with pytest.raises(NetworkSyntaxError, match="write it as IPv4"):
        parse_network("::ffff:10.0.0.0/104")


def test_ranges_are_kept_in_their_shortest_form() -> None:
    given = ["fd00::/8", "10.128.0.0/9", "10.0.0.0/9", "10.1.2.3", "192.0.2.7", "192.0.2.7/32"]
    assert canonical(map(parse_network, given)) == ("10.0.0.0/8", "192.0.2.7/32", "fd00::/8")


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.0.0.0", False),
        ("fd00::1", True),
        ("fe00::1", False),
        ("::a01:203", False),
        ("", False),
        ("10.1.2.3 ", False),
        ("10.1.2.3/8", False),
        ("unix", False),
    ],
)
def test_a_range_includes_its_addresses_and_nothing_that_is_none(address: str, inside: bool) -> None:
    assert AddressRanges.of(["10.0.0.0/8", "fd00::/8"]).contain(address) is inside


def test_ranges_without_a_network_include_no_address() -> None:
    assert not AddressRanges.of([]).contain("10.0.0.1")
    assert AddressRanges.of([]).cover(["10.0.0.1"]) == [False]


def test_all_of_ipv4_includes_no_ipv6_and_the_reverse() -> None:
    assert not AddressRanges.of(["0.0.0.0/0"]).contain("2001:db8::1")
    assert not AddressRanges.of(["::/0"]).contain("192.0.2.1")
    assert not AddressRanges.of(["::/0"]).contain("::ffff:192.0.2.1")


def test_ranges_cover_networks_within_their_union() -> None:
    held = AddressRanges.of(["10.0.0.0/9", "10.128.0.0/9", "fd00::/8"])
    assert held.cover(["10.0.0.0/8", "10.127.0.0/16", "8.0.0.0/6", "fd00::/8", "fc00::/7", "0.0.0.0/0"]) == [
        True, True, False, True, False, False,
    ]  # fmt: skip


def test_ranges_are_equal_if_they_mean_the_same_addresses() -> None:
    assert AddressRanges.of(["10.0.0.0/9", "10.128.0.0/9"]) == AddressRanges.of(["10.0.0.0/8"])
    assert hash(AddressRanges.of(["10.0.0.0/8"])) == hash(AddressRanges.of(["10.0.0.0/8", "10.1.0.0/16"]))
    assert AddressRanges.of(["10.0.0.0/8"]) != AddressRanges.of(["10.0.0.0/9"])


def test_a_mapped_address_counts_as_ipv4() -> None:
    assert is_within(ip_address("::ffff:10.0.0.1"), [ip_network("10.0.0.0/8")])
    assert not is_within(ip_address("::ffff:10.0.0.1"), [ip_network("::/0")])
