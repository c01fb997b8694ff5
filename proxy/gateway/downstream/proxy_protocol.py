"""Parsing the PROXY protocol, versions 1 and 2, by which a load balancer passes on the client's address.

The specification is haproxy.org/download/2.9/doc/proxy-protocol.txt.

Rules of this module:
1. ``parse`` is pure. It takes all bytes that have arrived so far and returns a header or "not yet", or raises an error.
2. "Not yet" is returned only while *every* byte so far belongs to the header: the caller may consume these bytes and
   no others.
3. Nothing is guessed. A header that is not exactly one of the forms below is an error, and the connection is closed.
4. A header has a bounded length: 107 bytes in version 1, ``MAX_HEADER`` in version 2.
5. The caller makes sure that the peer is one that the configuration lists.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from proxy.core.errors import PatgateError

MAX_HEADER: Final = 4096
"""Longest header that is accepted, in bytes: addresses of version 2 take 52, the rest is for extensions (TLVs)."""

_MAX_LINE: Final = 107
_BEGINNING: Final = b"PROXY "
_LINE: Final = re.compile(
    rb"PROXY TCP(?P<family>[46]) (?P<source>[0-9A-Fa-f:.]{2,39}) (?P<target>[0-9A-Fa-f:.]{2,39}) "
    rb"(?P<source_port>0|[1-9][0-9]{0,4}) (?P<target_port>0|[1-9][0-9]{0,4})\r\n"
)
_UNKNOWN_LINE: Final = re.compile(rb"PROXY UNKNOWN(?: [ -~]*)?\r\n")
_HIGHEST_PORT: Final = 65535

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNSPECIFIED: Final = 0x00
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_ADDRESSES: Final = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36}
"""Length of the address block of each family and transport that is understood here."""
_TLV: Final = 3
_CHECKSUM: Final = 0x03
_CHECKSUM_LENGTH: Final = 4


class ProxyHeaderError(PatgateError):
    """The connection does not begin with a valid PROXY header; it must be closed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A complete header: its length in bytes, and the client's address; None where that is the peer's own.

    An IPv4-mapped address is given as IPv4.
    """

    length: int
    source: str | None


def parse(data: bytes) -> Header | None:
    """Parse the header that ``data`` begins with; None while it is not complete. Raises ``ProxyHeaderError``."""
    if data[:1] == _SIGNATURE[:1]:
        return _binary(data)
    return _line(data)


def _line(data: bytes) -> Header | None:
    """Version 1 (section 2.1): one line of text."""
    end = data.find(b"\n", 0, _MAX_LINE)
    if end < 0:
        known = min(len(data), len(_BEGINNING))
        if data[:known] != _BEGINNING[:known] or len(data) >= _MAX_LINE or b"\r" in data[:-1]:
            raise ProxyHeaderError("the line is not one of the PROXY protocol")
        return None
    line = data[: end + 1]
    if _UNKNOWN_LINE.fullmatch(line) is not None:
        return Header(length=len(line), source=None)
    found = _LINE.fullmatch(line)
    if found is None or max(int(found["source_port"]), int(found["target_port"])) > _HIGHEST_PORT:
        raise ProxyHeaderError("the line is not one of the PROXY protocol")
    family = IPv4Address if found["family"] == b"4" else IPv6Address
    try:
        source, _ = (family(found[name].decode("ascii")) for name in ("source", "target"))
    except ValueError:
        raise ProxyHeaderError("an address in the line is none of its family") from None
    return Header(length=len(line), source=_text(source))


def _binary(data: bytes) -> Header | None:
    """Version 2 (section 2.2): a signature, four bytes, addresses and extensions."""
    known = min(len(data), len(_SIGNATURE))
    if data[:known] != _SIGNATURE[:known]:
        raise ProxyHeaderError("the signature is not that of the PROXY protocol")
    if len(data) < _FIXED:
        return None
    command, family, size = struct.unpack_from("!BBH", data, len(_SIGNATURE))
    length = _FIXED + size
    if command not in (_LOCAL, _PROXY) or length > MAX_HEADER:
        raise ProxyHeaderError("the version, the command or the length is not one that is accepted")
    # Section 2.2: in a header for the balancer's own connection (LOCAL) the family and the addresses are ignored.
    addresses = _ADDRESSES.get(family) if command == _PROXY else 0
    if addresses is None or size < addresses:
        raise ProxyHeaderError("the addresses are not those of TCP over IPv4 or IPv6")
    if len(data) < length:
        return None
    if command == _LOCAL or family == _UNSPECIFIED:
        # Addresses of an unknown family may follow, so the rest is not read.
        return Header(length=length, source=None)
    _extensions(data[:length], _FIXED + addresses)
    packed = data[_FIXED : _FIXED + (4 if family == _TCP4 else 16)]
    return Header(length=length, source=_text(ip_address(packed)))


def _text(address: IPv4Address | IPv6Address) -> str:
    """The text of an address; an IPv4-mapped one counts as IPv4 (RFC 4291 section 2.5.5.2)."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _extensions(header: bytes, at: int) -> None:
    """Walk the extensions: they fill the header exactly, and a checksum among them is right (section 2.2.3)."""
    while at < len(header):
        value = at + _TLV
        if value > len(header):
            raise ProxyHeaderError("an extension is cut off")
        kind, size = struct.unpack_from("!BH", header, at)
        at = value + size
        if at > len(header):
            raise ProxyHeaderError("an extension is longer than the header")
        if kind == _CHECKSUM:
            if size != _CHECKSUM_LENGTH:
                raise ProxyHeaderError("the checksum is not one of 32 bits")
            (said,) = struct.unpack_from("!I", header, value)
            if crc32c(header[:value] + bytes(size) + header[at:]) != said:
                raise ProxyHeaderError("the checksum is wrong")


def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        entries.append(value)
    return tuple(entries)


_CRC: Final = _table()


def crc32c(data: bytes) -> int:
    """The CRC-32 of Castagnoli's polynomial, reflected (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
