"""The client's address and the request id in the fields of a trusted peer."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from proxy.core.request.client_address import MOST_HOPS, ClientAddresses, ingress_id, named_client, parse_entry

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
PEER = "10.0.0.1"


def address(*fields: tuple[str, str]) -> str:
    return ClientAddresses(TRUSTED).of(PEER, [(name.encode(), value.encode("latin-1")) for name, value in fields])


def forwarded(*values: str) -> str:
    return address(*(("x-forwarded-for", value) for value in values))


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:4711", "192.0.2.7"),
        (" \t192.0.2.7 ", "192.0.2.7"),
        ("2001:DB8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::ffff:192.0.2.7]:80", "192.0.2.7"),
        ("2001:db8:0:0:0:0:0:7", "2001:db8::7"),
    ],
)
def test_an_entry_may_have_a_port_and_brackets(entry: str, named: str) -> None:
    assert str(parse_entry(entry.encode())) == named


@pytest.mark.parametrize(
    "entry",
    [
        "", " ", "unknown", "_hidden", "localhost", "192.0.2", "192.0.2.256", "0192.0.2.7", "192.0.2.7:", "192.0.2.7:x",
        "192.0.2.7:123456", "[192.0.2.7]", "[2001:db8::7", "2001:db8::7]", "[2001:db8::7]x", "fe80::1%eth0",
        "[fe80::1%25eth0]", "2001:db8::7::1", '"192.0.2.7"', "for=192.0.2.7", "192.0.2.7;x", "3221225991", "0xc0000207",
        "192.0.2.7\u00a0", "192.0.2.7 10.0.0.1", "192.0.2.7\x00",
    ],
)  # fmt: skip
def test_an_entry_that_is_no_address_names_nobody(entry: str) -> None:
    assert parse_entry(entry.encode("latin-1")) is None
    assert forwarded(entry) == PEER


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9,10.0.0.3,fd00::2", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("junk, , 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9, ::ffff:10.0.0.2", "203.0.113.9"),
        ("203.0.113.9:1, [fd00::2]:2", "203.0.113.9"),
    ],
)
def test_the_client_is_the_last_address_that_is_not_trusted(chain: str, client: str) -> None:
    assert forwarded(chain) == client


def test_where_every_address_is_trusted_the_first_is_the_client() -> None:
    assert forwarded("10.0.0.9, 10.0.0.2") == "10.0.0.9"


@pytest.mark.parametrize("chain", ["", ",", "203.0.113.9,", "203.0.113.9, unknown, 10.0.0.2", "unknown"])
def test_a_list_that_breaks_off_before_the_client_names_nobody(chain: str) -> None:
    assert forwarded(chain) == PEER


def test_several_lines_are_one_list_in_their_order() -> None:
    assert forwarded("198.51.100.1", "203.0.113.9", "10.0.0.2") == "203.0.113.9"
    assert forwarded("203.0.113.9", "") == PEER


def test_a_list_with_too_many_proxies_names_nobody_and_a_clients_long_claim_changes_nothing() -> None:
    proxies = ["10.0.0.2"] * (MOST_HOPS - 1)
    assert named_client(", ".join(["203.0.113.9", *proxies]).encode(), TRUSTED) == "203.0.113.9"
    assert named_client(", ".join(["203.0.113.9", "10.0.0.2", *proxies]).encode(), TRUSTED) == ""
    assert forwarded("10.0.0.66," * 5000 + "203.0.113.9") == "203.0.113.9"


def test_x_real_ip_counts_only_without_x_forwarded_for_and_once() -> None:
    assert address(("x-real-ip", "203.0.113.9")) == "203.0.113.9"
    assert address(("x-real-ip", "203.0.113.9"), ("x-forwarded-for", "192.0.2.7")) == "192.0.2.7"
    assert address(("x-forwarded-for", ""), ("x-real-ip", "203.0.113.9")) == PEER
    assert address(("x-real-ip", "203.0.113.9"), ("x-real-ip", "203.0.113.9")) == PEER
    assert address(("x-real-ip", "203.0.113.9, 10.0.0.2")) == PEER
    assert address(("x-forwarded-host", "203.0.113.9")) == PEER


def test_a_list_has_the_same_client_when_it_is_read_again_after_many_others() -> None:
    addresses = ClientAddresses(TRUSTED)
    for number in range(10_000):
        chain = f"claim{number}, 203.0.113.{number % 250}, 10.0.0.2".encode()
        assert addresses.of(PEER, [(b"x-forwarded-for", chain)]) == f"203.0.113.{number % 250}"
    # Whom a list does not name depends on the peer, which is not remembered with it.
    for peer in ("10.0.0.1", "10.0.0.2"):
        assert addresses.of(peer, [(b"x-forwarded-for", b"unknown")]) == peer


@pytest.mark.parametrize("value", ["4f1c-2a", "Root=1-67891233-abcdef", "a" * 128, "req/1:2@host+x."])
def test_a_request_id_of_plain_characters_is_kept(value: str) -> None:
    assert ingress_id([(b"x-request-id", value.encode())]) == value


@pytest.mark.parametrize("value", ["", "a" * 129, "a b", 'a"b', "a\\b", "a%0a", "<a>", "\u00e4", "a,b", "a\x7fb"])
def test_any_other_request_id_is_none(value: str) -> None:
    assert ingress_id([(b"x-request-id", value.encode("latin-1"))]) == ""


def test_two_request_ids_are_none() -> None:
    assert ingress_id([(b"x-request-id", b"a"), (b"x-request-id", b"a")]) == ""
