"""Finding tokens where none belongs: in a target, a cookie, or any field but the credential's own.

Rules of this module:
1. What is found need not have a right checksum: a token with one mistyped character is still most of a secret.
2. A token is found as it stands, and with any of its characters percent-encoded once (RFC 3986 section 2.1), since
   that is how a query or a cookie carries it. ``contains_credential`` also reads base64 (RFC 7617), as leniently as
   any backend might.
3. Nearly every head has no token in it. What that costs is a few searches for single bytes, which the C library does.
"""

from __future__ import annotations

import base64
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from proxy.core.token import TokenFormat

_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_NOT_BASE64: Final = re.sub(rb"[A-Za-z0-9+/_-]", b"", bytes(range(256)))
_RUN: Final = re.compile(rb"[A-Za-z0-9+/_-]{24,}")


class TokenSearch:
    """Searches bytes for tokens of one brand."""

    def __init__(self, tokens: TokenFormat) -> None:
        start = f"{tokens.brand}_".encode("ascii")
        self._start = start
        self._token = re.compile(tokens.embedded_pattern.encode("ascii"))
        # Without one of these, no character of the brand and its "_" is escaped, and the plain search finds it.
        codes = "|".join(f"{byte >> 4:x}[{byte & 15:x}{byte & 15:X}]" for byte in sorted(set(start)))
        self._escaped = re.compile(f"%(?:{codes})".encode("ascii"))

    def contains(self, text: bytes) -> bool:
        """Whether a token stands in ``text``, as it is or percent-encoded once."""
        # With a number, ``in`` looks for one byte in a sixth of the time of ``find``.
        if 0x5F in text and text.find(self._start) >= 0:
            return self._examine(text)
        return 0x25 in text and self._escaped.search(text) is not None and self._examine(text)

    def contains_credential(self, value: bytes) -> bool:
        """Whether the value of a field that may carry a login holds a token, also in base64."""
        if self.contains(value):
            return True
        encoded: list[bytes] = _RUN.findall(value)
        if value[:5].lower() == b"basic":
            # What is not quite base64 must not carry a token past here either: some backends skip foreign bytes.
            encoded.append(value[5:].translate(None, _NOT_BASE64))
        # What stands in front ("v1/…", "k8s-…") may be of the same alphabet: any of four characters may be the first.
        return any(self._token.search(_decoded(run[at:])) is not None for run in encoded for at in range(4))

    def without(self, lines: bytes) -> bytes:
        """Field lines (each after a CRLF) without those that hold a token."""
        return b"\r\n".join([line for line in lines.split(b"\r\n") if not self.contains(line)])

    def _examine(self, text: bytes) -> bool:
        return self._token.search(text) is not None or (
            0x25 in text and self._token.search(unquote_to_bytes(text)) is not None
        )


def _decoded(encoded: bytes) -> bytes:
    """The bytes of base64 in either alphabet, whatever its padding."""
    whole = encoded[: len(encoded) - (len(encoded) % 4 == 1)].translate(_URL_SAFE)
    return base64.b64decode(whole + b"=" * (-len(whole) % 4))
