"""The client's address and the request id, where trusted peers name them.

Log, audit events, the usage of a token and its IP ranges all use this address. Rules of this module:
1. Only a trusted peer is asked: the caller has checked that. From any other peer the address is the peer's own.
2. ``X-Forwarded-For`` decides where it is present; several lines are one list, in their order. Each proxy appends the
   address of its peer, so the list is read from its end: trusted addresses are proxies, and the first address that is
   not trusted is the client. What stands before it is the client's own claim, and is not read.
3. Where every address is trusted, the first one is the client, as the proxy after it says.
4. An entry that is no address, an empty one, and a list with more than ``MOST_HOPS`` trusted proxies at its end name
   nobody: the address is the peer's own. Nothing that is read of such a list is used.
5. ``X-Real-IP`` counts only without ``X-Forwarded-For``, once, with one address. ``Forwarded`` (RFC 7239) is not read.
6. An entry may have a port and brackets, as proxies write them: ``192.0.2.7``, ``192.0.2.7:4711``, ``2001:db8::7``,
   ``[2001:db8::7]``, ``[2001:db8::7]:4711``. An IPv4-mapped address counts as IPv4. A zone is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final

from proxy.core.networks import Address, Network, is_within, unmapped

FORWARDED_FOR: Final = b"x-forwarded-for"
REAL_IP: Final = b"x-real-ip"
REQUEST_ID: Final = b"x-request-id"
MOST_HOPS: Final = 32
"""The most entries of a list that are read."""

_ENTRY: Final = re.compile(
    rb"[ \t]*(?:\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15})(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45}))[ \t]*"
)
_INGRESS_ID: Final = re.compile(rb"[0-9A-Za-z._:/=+@-]{1,128}")
_MEMO: Final = 4096
_MEMO_LENGTH: Final = 256


def parse_entry(entry: bytes) -> Address | None:
    """The address of one entry of a list, without its port; None if it is none (rule 6)."""
    matched = _ENTRY.fullmatch(entry)
    if matched is None:
        return None
    bracketed, four, six = matched[1], matched[2], matched[3]
    text = bracketed or four or six
    try:
        address = ip_address(text.decode("ascii"))
    except ValueError:
        return None
    if bracketed is not None and address.version == 4:
        return None
    return unmapped(address)


def named_client(chain: bytes, trusted: Sequence[Network]) -> str:
    """The client that a list of ``X-Forwarded-For`` names (rules 2 to 4), in its short form; "" if it names nobody."""
    left = chain
    for _ in range(MOST_HOPS):
        left, comma, entry = left.rpartition(b",")
        address = parse_entry(entry)
        if address is None:
            return ""
        if not comma or not is_within(address, trusted):
            return str(address)
    return ""


def ingress_id(fields: Iterable[tuple[bytes, bytes]]) -> str:
    """The request id in the fields of a trusted peer: one, of plain characters and at most 128; else ""."""
    ids = [value for name, value in fields if name == REQUEST_ID]
    return ids[0].decode("ascii") if len(ids) == 1 and _INGRESS_ID.fullmatch(ids[0]) is not None else ""


class ClientAddresses:
    """Finds the client's address in the fields of trusted peers, and remembers the usual lists.

    ``trusted`` are the networks whose forwarding fields are believed.
    """

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)
        self._memo: dict[bytes, str] = {}

    def of(self, peer: str, fields: Iterable[tuple[bytes, bytes]]) -> str:
        """The client's address, where the trusted ``peer`` sent these fields (names in lower case)."""
        chain: bytes | None = None
        real: bytes | None = None
        for name, value in fields:
            if name == FORWARDED_FOR:
                chain = value if chain is None else chain + b"," + value
            elif name == REAL_IP:
                real = value if real is None else real + b"," + value
        if chain is None:
            if real is None or b"," in real:
                return peer
            chain = real
        named = self._memo.get(chain)
        if named is None:
            named = named_client(chain, self._trusted)
            if len(chain) <= _MEMO_LENGTH:
                if len(self._memo) >= _MEMO:
                    # The part of a list that is not read is the client's: it must not keep others out for good.
                    self._memo.clear()
                self._memo[chain] = named
        return named or peer
