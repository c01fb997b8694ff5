"""Calls as Envoy encodes them, and answers as it reads them: the wire format by hand, from the public field numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

METHOD = b"/envoy.service.auth.v3.Authorization/Check"


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def part(number: int, value: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def check(
    *,
    method: bytes = b"GET",
    path: bytes = b"/v1/things/1",
    host: bytes = b"app.example",
    raw: Iterable[tuple[bytes, bytes]] = (),
    joined: Iterable[tuple[bytes, bytes]] = (),
    source: bytes = b"",
    more: bytes = b"",
    extensions: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """A CheckRequest; ``raw`` is a ``header_map``, ``joined`` are ``headers``, ``more`` other fields of the request."""
    http = part(2, method) + part(4, path) + part(5, host) + part(10, b"HTTP/1.1") + more
    http += b"".join(part(3, part(1, name) + part(2, value)) for name, value in joined)
    lines = b"".join(part(1, part(1, name) + part(3, value)) for name, value in raw)
    http += part(13, lines) if lines else b""
    peer = part(1, part(1, part(1, part(2, source) + b"\x18\x92\x20")))
    own = b"".join(part(10, part(1, name) + part(2, value)) for name, value in extensions)
    return part(1, (peer if source else b"") + part(4, part(2, http)) + own)


def fields(data: bytes) -> list[tuple[int, bytes | int]]:
    """The number and value of each field."""
    found: list[tuple[int, bytes | int]] = []
    while data:
        key, data = _number(data)
        value, data = _number(data)
        if key & 7 == 2:
            found.append((key >> 3, data[:value]))
            data = data[value:]
        else:
            assert key & 7 == 0
            found.append((key >> 3, value))
    return found


def _number(data: bytes) -> tuple[int, bytes]:
    size = next(at for at, byte in enumerate(data, 1) if byte < 0x80)
    return sum((byte & 0x7F) << 7 * at for at, byte in enumerate(data[:size])), data[size:]


@dataclass
class Verdict:
    """A CheckResponse. ``headers`` are name, value and the action in Envoy's numbers."""

    code: int = 0
    status: int = 200
    headers: list[tuple[str, str, int]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    body: bytes = b""

    @property
    def names(self) -> dict[str, str]:
        return {name: value for name, value, _ in self.headers}


def verdict(data: bytes) -> Verdict:
    found = Verdict()
    for number, value in fields(data):
        assert isinstance(value, bytes)
        if number == 1:
            found.code = int(dict(fields(value)).get(1, 0))
            continue
        assert number in (2, 3)
        for inner, content in fields(value):
            if inner == 2:
                assert isinstance(content, bytes)
                option = dict(fields(content))
                assert isinstance(option[1], bytes)
                header = dict(fields(option[1]))
                assert option[4] == 1, "an empty value must stay"
                pair = [bytes(header.get(at, b"")).decode() for at in (1, 2)]
                found.headers.append((pair[0], pair[1], int(option.get(3, 0))))
            elif number == 3 and inner == 5:
                assert isinstance(content, bytes)
                found.removed.append(content.decode())
            elif number == 2 and inner == 1:
                assert isinstance(content, bytes)
                found.status = int(dict(fields(content))[1])
            elif number == 2 and inner == 3:
                assert isinstance(content, bytes)
                found.body = content
    return found
