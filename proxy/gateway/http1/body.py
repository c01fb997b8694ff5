"""Message bodies (RFC 9112 sections 6 and 7.1): strict decoding of each framing, and chunked encoding.

Rules of this module:
1. A forwarded body is built from the decoded bytes; a sender's chunk framing, extensions and trailers are dropped.
2. Anything but the grammar is an error that ends the connection: no leniency switch exists.
3. A reader holds at most ``LINE_LIMIT`` bytes of an incomplete line; payload is returned as it arrives and never kept.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from proxy.core.errors import PatgateError

LINE_LIMIT: Final = 512
"""Longest chunk-size line, in bytes: 16 hex digits, 256 bytes of extensions and some white space."""

EXTENSION_LIMIT: Final = 256
TRAILER_LIMIT: Final = 16 * 1024
"""Longest trailer section that is read (and dropped), in bytes."""

_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_EXTENSIONS: Final = re.compile(
    rb"(?:[ \t]*+;[ \t]*+[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
    rb"(?:[ \t]*+=[ \t]*+(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*+"))?+)*+'
)
"""chunk-ext (RFC 9112 section 7.1.1): names that are tokens, with values that are tokens or quoted strings."""
_CONTROL: Final = frozenset(set(range(0x20)) - {0x09} | {0x7F})


class FramingError(PatgateError):
    """The body violates RFC 9112 section 7.1; its connection must be closed."""


class BodyReader(Protocol):
    """A parser that finds the end of one body in a stream of bytes."""

    done: bool
    chunked: bool

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Parse the next bytes; return their payload and the bytes behind the end of the body.

        The second value is empty until ``done`` is true. Raises ``FramingError``.
        """
        ...


class LengthBody:
    """A body of ``length`` bytes (RFC 9112 section 6.2)."""

    __slots__ = ("done", "remaining")
    chunked = False

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the payload up to the announced length, and the bytes behind it."""
        size = len(data)
        if size < self.remaining:
            self.remaining -= size
            return [data], b""
        payload, rest = data[: self.remaining], data[self.remaining :]
        self.remaining = 0
        self.done = True
        return ([payload] if payload else []), rest


class CloseBody:
    """A response body that ends with the connection (RFC 9112 section 6.3, rule 8)."""

    __slots__ = ("done",)
    chunked = False

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return all bytes as payload."""
        return [data], b""


class TunnelBody:
    """One direction of an upgraded connection: bytes of another protocol, until the connection ends."""

    __slots__ = ("done",)
    chunked = False

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return all bytes as payload."""
        return [data], b""


class ChunkedBody:
    """A chunked body (RFC 9112 section 7.1). Extensions and trailers are checked and dropped."""

    __slots__ = ("_line", "_remaining", "_state", "_trailer_bytes", "done")
    chunked = True

    _SIZE = 0
    _DATA = 1
    _DATA_END = 2
    _TRAILER = 3

    def __init__(self) -> None:
        self._state = self._SIZE
        self._line = b""
        self._remaining = 0
        self._trailer_bytes = 0
        self.done = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Return the payload of the chunks, and the bytes behind the last one. Raises ``FramingError``."""
        payload: list[bytes] = []
        if self._line:
            data, self._line = self._line + data, b""
        at, end = 0, len(data)
        while at < end:
            if self._state == self._DATA:
                take = min(self._remaining, end - at)
                payload.append(data[at : at + take])
                at += take
                self._remaining -= take
                if not self._remaining:
                    self._state = self._DATA_END
            elif self._state == self._DATA_END:
                if end - at < 2:
                    if data[at] != 0x0D:
                        raise FramingError("a chunk is not followed by CRLF")
                    self._line = data[at:]
                    break
                if data[at : at + 2] != b"\r\n":
                    raise FramingError("a chunk is not followed by CRLF")
                at += 2
                self._state = self._SIZE
            else:
                stop = data.find(b"\n", at)
                if stop < 0:
                    self._keep(data[at:])
                    break
                line = data[at:stop]
                at = stop + 1
                if not line.endswith(b"\r"):
                    raise FramingError("a line of the chunked body ends in a bare LF")
                if self._state == self._SIZE:
                    self._size(line[:-1])
                elif self._trailer(line[:-1]):
                    self.done = True
                    return payload, data[at:]
        return payload, b""

    def _keep(self, line: bytes) -> None:
        limit = LINE_LIMIT if self._state == self._SIZE else TRAILER_LIMIT
        # A CR at the very end may be half of the line's CRLF, which does not count.
        if len(line) - line.endswith(b"\r") > limit:
            raise FramingError("a line of the chunked body is too long")
        if b"\r" in line[:-1]:
            raise FramingError("a line of the chunked body contains a bare CR")
        self._line = line

    def _size(self, line: bytes) -> None:
        digits, semicolon, extension = line.partition(b";")
        if semicolon:
            # White space before a semicolon is allowed ("BWS"); without a semicolon it is not.
            digits = digits.rstrip(b" \t")
            if len(line) > LINE_LIMIT or len(extension) > EXTENSION_LIMIT:
                raise FramingError("a chunk extension is too long")
            if _EXTENSIONS.fullmatch(line, len(digits)) is None:
                raise FramingError("a chunk extension is malformed")
        if not 1 <= len(digits) <= 16 or not _HEX.issuperset(digits):
            raise FramingError("a chunk size is not a plain hexadecimal number")
        self._remaining = int(digits, 16)
        self._state = self._DATA if self._remaining else self._TRAILER

    def _trailer(self, line: bytes) -> bool:
        if not line:
            return True
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > TRAILER_LIMIT:
            raise FramingError("the trailer section is too long")
        name, colon, value = line.partition(b":")
        if not colon or not name or not _TOKEN.issuperset(name) or not _CONTROL.isdisjoint(value):
            raise FramingError("a trailer field is malformed")
        return False


def encode_chunks(pieces: list[bytes], *, last: bool) -> bytes:
    """Encode payload ``pieces`` as one chunk, and the final empty chunk when ``last`` (RFC 9112 section 7.1)."""
    size = sum(map(len, pieces))
    if not size:
        return b"0\r\n\r\n" if last else b""
    return b"".join((b"%x\r\n" % size, *pieces, b"\r\n0\r\n\r\n" if last else b"\r\n"))
