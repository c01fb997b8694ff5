"""Networks of IP addresses: parsing, membership, and the IP ranges that a token may be used from.

1. An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) counts as IPv4 everywhere.
2. ``AddressRanges`` is compiled once, so that a request costs an integer comparison for each range. Ranges without any
   network include no address; "no restriction" is ``None`` and never an empty value.
3. A text that is no address is in no range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

RANGES_MOST: Final = 64
"""The most IP ranges of a token."""
TEXT_MOST: Final = 64
"""The longest text of a network, in characters; none needs so many."""
_MAPPED_IPV4: Final = IPv6Network("::ffff:0:0/96")


class NetworkSyntaxError(ValueError):
    """A text is no network. The message continues a sentence that begins with the text, which it does not repeat."""


def parse_network(text: str) -> Network:
    """``10.0.0.0/8``, ``10.0.0.1`` or ``fd00::/8`` → network. Raises NetworkSyntaxError.

    An address with bits beyond the prefix is refused, because it is not clear what was meant. So is an IPv4-mapped IPv6
    network: addresses have their IPv4 form, so it would never match.
    """
    try:
        if len(text) > TEXT_MOST or "%" in text:
            raise ValueError("no network is so long, or has a zone")
        network = ip_network(text, strict=False)
        within = "/" in text and ip_interface(text).ip != network.network_address
    except ValueError:
        raise NetworkSyntaxError("is not a network; write one such as 10.0.0.0/8 or fd00::/8") from None
    if within:
        raise NetworkSyntaxError(f"names an address inside a network; write {network} for the whole network")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED_IPV4):
        raise NetworkSyntaxError("is an IPv4 network in IPv6 form; write it as IPv4")
    return network


def unmapped(address: Address) -> Address:
    """The IPv4 address of an IPv4-mapped IPv6 address; any other address as it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    """Whether an address is in one of ``networks``; an IPv4-mapped one counts as IPv4."""
    plain = unmapped(address)
    return any(plain in network for network in networks)


def canonical(networks: Iterable[Network]) -> tuple[str, ...]:
    """The smallest list of texts that means the same addresses: IPv4 first, in order, nothing twice or within another.

    Two adjacent networks that are the halves of a larger one become that one.
    """
    given = list(networks)
    four = collapse_addresses([network for network in given if isinstance(network, IPv4Network)])
    six = collapse_addresses([network for network in given if isinstance(network, IPv6Network)])
    return (*map(str, four), *map(str, six))


class AddressRanges:
    """The addresses that a token may be used from. ``texts`` is the canonical list of its networks."""

    __slots__ = ("_four", "_six", "texts")

    def __init__(self, networks: Iterable[Network]) -> None:
        self.texts = canonical(networks)
        merged = [ip_network(text) for text in self.texts]
        self._four = [(int(one.netmask), int(one.network_address)) for one in merged if one.version == 4]
        self._six = [(int(one.netmask), int(one.network_address)) for one in merged if one.version == 6]

    @classmethod
    def of(cls, texts: Sequence[str]) -> AddressRanges:
        """The ranges that these texts name. Raises NetworkSyntaxError."""
        return cls([parse_network(text) for text in texts])

    def contain(self, address: str) -> bool:
        """Whether the address with this text may use the token; false for a text that is no address."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        plain = unmapped(parsed)
        number = int(plain)
        for mask, network in self._four if isinstance(plain, IPv4Address) else self._six:
            if number & mask == network:
                return True
        return False

    def cover(self, texts: Iterable[str]) -> list[bool]:
        """Whether each of these networks is within the ranges, in their order. Raises NetworkSyntaxError."""
        held = [ip_network(text) for text in self.texts]
        return [any(_covers(one, network) for one in held) for network in map(parse_network, texts)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AddressRanges) and self.texts == other.texts

    def __hash__(self) -> int:
        return hash(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"AddressRanges({', '.join(self.texts)})"


def _covers(wide: Network, narrow: Network) -> bool:
    if isinstance(wide, IPv4Network):
        return isinstance(narrow, IPv4Network) and narrow.subnet_of(wide)
    return isinstance(narrow, IPv6Network) and narrow.subnet_of(wide)
