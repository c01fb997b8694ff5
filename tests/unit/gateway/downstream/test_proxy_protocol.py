"""Parsing PROXY protocol headers: valid ones, invalid ones, and where a header ends."""

from __future__ import annotations

import struct

import pytest

from proxy.gateway.downstream.proxy_protocol import MAX_HEADER, Header, ProxyHeaderError, crc32c, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
TCP4 = bytes((192, 0, 2, 7, 10, 0, 0, 1)) + struct.pack("!HH", 4711, 443)
TCP6 = bytes.fromhex("20010db8000000000000000000000007" + "00" * 15 + "01") + struct.pack("!HH", 4711, 443)


def binary(addresses: bytes = TCP4, *, command: int = 0x21, family: int = 0x11, extensions: bytes = b"") -> bytes:
    block = addresses + extensions
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def extension(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def checked(*, flip: int = 0, size: int = 4) -> bytes:
    """A header with the checksum extension."""
    before, after = extension(0x05, b"an id"), extension(0x04, bytes(3))
    empty = binary(extensions=before + extension(0x03, bytes(size)) + after)
    said = crc32c(empty) ^ flip
    return binary(extensions=before + extension(0x03, struct.pack("!I", said)[:size]) + after)


GOOD = {
    b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\r\n": "192.0.2.7",
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": "255.255.255.255",
    b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n": "0.0.0.0",
    b"PROXY TCP6 2001:DB8::7 ::1 4711 443\r\n": "2001:db8::7",
    b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:10.0.0.1 1 2\r\n": "192.0.2.7",
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN 2001:db8::7 ::1 4711 443\r\n": None,
    b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n": None,
    binary(): "192.0.2.7",
    binary(TCP6, family=0x21): "2001:db8::7",
    binary(extensions=extension(0x01, b"h2") + extension(0x20, b"\x01\0\0\0\0")): "192.0.2.7",
    binary(extensions=extension(0xEE, bytes(MAX_HEADER - 16 - 12 - 3))): "192.0.2.7",
    binary(b"", command=0x20, family=0x00): None,
    binary(b"", command=0x20, family=0x11): None,
    binary(b"whatever", command=0x20, family=0x77): None,
    binary(b"", family=0x00): None,
    binary(b"whatever", family=0x00): None,
    checked(): "192.0.2.7",
}

BAD = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"P\r",
    b"proxy TCP4 192.0.2.7 10.0.0.1 4711 443\r\n",
    b"PROXY\r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 443 \r\n",
    b"PROXY TCP4  192.0.2.7 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4\t192.0.2.7 10.0.0.1 4711 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 04711 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 1 65536\r\n",
    b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 443\r\n",
    b"PROXY TCP4 192.0.2.07 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.256 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 2001:db8::7 10.0.0.1 1 2\r\n",
    b"PROXY TCP4 192.0.2.7 ::1 1 2\r\n",
    b"PROXY TCP6 192.0.2.7 ::1 1 2\r\n",
    b"PROXY TCP6 2001:db8:::7 ::1 1 2\r\n",
    b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    b"PROXY TCP5 192.0.2.7 10.0.0.1 1 2\r\n",
    b"PROXY UDP4 192.0.2.7 10.0.0.1 1 2\r\n",
    b"PROXY UNKNOWN\0\r\n",
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    b"PROXY TCP4 " + b"1" * 96,
    b"\r\n\r\nGET",
    b"\r\n\r\n\0\r\nQUIT\r",
    binary(command=0x11),
    binary(command=0x31),
    binary(command=0x22),
    binary(command=0x2F),
    binary(family=0x10),
    binary(family=0x12),
    binary(bytes(216), family=0x31),
    binary(TCP4[:-1]),
    binary(TCP6[:-1], family=0x21),
    binary(extensions=b"\x01"),
    binary(extensions=b"\x01\x00"),
    binary(extensions=extension(0x01, b"h2")[:-1]),
    binary(extensions=b"\x01\xff\xff"),
    binary(extensions=extension(0xEE, bytes(MAX_HEADER - 16 - 12 - 2))),
    checked(flip=1),
    checked(size=3),
    SIGNATURE + b"\x21\x11\xff\xff",
]


@pytest.mark.parametrize(("header", "source"), GOOD.items())
@pytest.mark.parametrize("behind", [b"", b"GET / HTTP/1.1\r\n", b"\r\n\r\n\x00\r\nQUIT\n", b"PROXY UNKNOWN\r\n"])
def test_bytes_behind_a_header_are_not_part_of_it(header: bytes, source: str | None, behind: bytes) -> None:
    assert parse(header + behind) == Header(length=len(header), source=source)


@pytest.mark.parametrize("header", GOOD)
def test_part_of_a_header_is_not_complete_and_no_error(header: bytes) -> None:
    assert {parse(header[:size]) for size in range(len(header))} == {None}


@pytest.mark.parametrize("data", BAD)
def test_anything_else_is_an_error(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse(data)


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
