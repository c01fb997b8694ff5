"""Fuzz target: the parser of the PROXY protocol header agrees with a second implementation of the specification.

For a prefix of the header, the parser returns None, an error, or the result for the whole header.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from proxy.gateway.downstream.proxy_protocol import MAX_HEADER, Header, ProxyHeaderError, crc32c, parse
from tests.fuzz.targets.target import Target

_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"


def ours(data: bytes) -> Header | str | None:
    try:
        return parse(data)
    except ProxyHeaderError:
        return "refused"


def text_source(line: bytes) -> str | None:
    """The client's address in an accepted line of version 1; None for UNKNOWN."""
    words = line[:-2].decode("ascii").split(" ")
    assert words[0] == "PROXY"
    if words[1] == "UNKNOWN":
        return None
    assert words[1] in ("TCP4", "TCP6") and len(words) == 6
    version = 4 if words[1] == "TCP4" else 6
    addresses = [ipaddress.ip_address(word) for word in words[2:4]]
    assert [address.version for address in addresses] == [version, version]
    assert all(str(int(word)) == word and int(word) < 65536 for word in words[4:])
    return _plain(addresses[0])


def binary_source(header: bytes) -> str | None:
    """The client's address in an accepted header of version 2."""
    version, family, size = struct.unpack("!BBH", header[12:16])
    assert header[:12] == _SIGNATURE and version in (0x20, 0x21) and len(header) == 16 + size
    if version == 0x20 or family == 0:
        return None
    assert family in (0x11, 0x21)
    packed = header[16:20] if family == 0x11 else header[16:32]
    return _plain(ipaddress.ip_address(packed))


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The text of an address; an IPv4-mapped one is written as IPv4."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def run(data: bytes) -> None:
    whole = ours(data)
    for end in range(len(data)) if len(data) < 256 else (0, 1, 11, 12, 13, 15, 16, 17, 27, 28, 52, 107, len(data) - 1):
        part = ours(data[:end])
        assert part is None or part == whole, (part, whole, end)
    if not isinstance(whole, Header):
        return
    assert 0 < whole.length <= min(len(data), MAX_HEADER)
    header = data[: whole.length]
    assert ours(header) == whole and ours(header + b"GET / HTTP/1.1\r\n\r\n") == whole
    assert whole.length <= 107 or header.startswith(_SIGNATURE)
    expected = binary_source(header) if header.startswith(b"\r") else text_source(header)
    assert whole.source == expected


def _binary(command: int, family: int, block: bytes) -> bytes:
    return _SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def _checked(block: bytes) -> bytes:
    """A header with a correct checksum extension."""
    unsigned = _binary(0x21, 0x11, block + b"\x03\0\4\0\0\0\0")
    return unsigned[:-4] + struct.pack("!I", crc32c(unsigned))


_V4: Final = bytes((192, 0, 2, 7, 10, 0, 0, 1)) + struct.pack("!HH", 54321, 443)

TARGET: Final = Target(
    name="proxy_protocol",
    run=run,
    seeds=(
        b"PROXY TCP4 192.0.2.7 10.0.0.1 54321 443\r\nGET / HTTP/1.1\r\n",
        b"PROXY TCP6 2001:db8::7 ::ffff:10.0.0.1 54321 443\r\n",
        b"PROXY UNKNOWN ff:: ff:: 1 1\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY TCP4 192.0.2.07 10.0.0.1 65536 0443\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        _binary(0x21, 0x11, _V4) + b"GET /",
        _binary(0x21, 0x21, bytes(32) + b"\1\2\3\4"),
        _binary(0x20, 0x00, b""),
        _binary(0x20, 0xFF, b"anything"),
        _binary(0x21, 0x00, b"anything"),
        _binary(0x21, 0x11, _V4 + b"\x04\0\2\0\0" + b"\x20\0\1x"),
        _checked(_V4),
        _binary(0x21, 0x11, bytes(4081)),
    ),
    pieces=(
        b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"\r\n", b"\r", b"\n", b" ", b"192.0.2.7", b"::1",
        b"::ffff:1.2.3.4", b"%eth0", b"65535", b"0", _SIGNATURE, b"\x21\x11\0\x0c", b"\x20\0\0\0", b"\x21\x21\0\x24",
        b"\x03\0\4", b"\x04\0\0", b"\xff\xff",
    ),
    longest=4200,
)  # fmt: skip
