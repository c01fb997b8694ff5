"""Searching for misplaced tokens: in a target, a cookie, or any field other than the credential's own.

Rules of this module:
1. A match needs no correct checksum: a token with one mistyped character still reveals most of a secret.
2. The search finds a token in plain form, and with any of its characters percent-encoded once (RFC 3986 section 2.1),
   as a query or a cookie carries it. ``contains_credential`` also decodes base64 (RFC 7617), as leniently as any
   backend might.
3. Nearly all request heads contain no token. For these the cost is a few searches for single bytes in the C library.
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
        # If none of these occurs, no character of the brand and its "_" is escaped, and the plain search suffices.
        codes = "|".join(f"{byte >> 4:x}[{byte & 15:x}{byte & 15:X}]" for byte in sorted(set(start)))
        self._escaped = re.compile(f"%(?:{codes})".encode("ascii"))

    def contains(self, text: bytes) -> bool:
        """Whether ``text`` contains a token, plain or percent-encoded once."""
        # With a number, ``in`` finds one byte in a sixth of the time that ``find`` takes.
        if 0x5F in text and text.find(self._start) >= 0:
            return self._examine(text)
        return 0x25 in text and self._escaped.search(text) is not None and self._examine(text)

    def contains_credential(self, value: bytes) -> bool:
        """Whether the value of a field that may carry credentials contains a token, also in base64."""
        if self.contains(value):
            return True
        encoded: list[bytes] = _RUN.findall(value)
        if value[:5].lower() == b"basic":
            # Remove other bytes, because some backends skip them when they decode.
            encoded.append(value[5:].translate(None, _NOT_BASE64))
        # Text before the base64 ("v1/…", "k8s-…") may use the same alphabet, so decode from each of four offsets.
        return any(self._token.search(_decoded(run[at:])) is not None for run in encoded for at in range(4))

    def without(self, lines: bytes) -> bytes:
        """The field lines (each after a CRLF) that contain no token."""
        return b"\r\n".join([line for line in lines.split(b"\r\n") if not self.contains(line)])

    def _examine(self, text: bytes) -> bool:
        return self._token.search(text) is not None or (
            0x25 in text and self._token.search(unquote_to_bytes(text)) is not None
        )


def _decoded(encoded: bytes) -> bytes:
    """The bytes of base64 in either alphabet, with or without padding."""
    whole = encoded[: len(encoded) - (len(encoded) % 4 == 1)].translate(_URL_SAFE)
    return base64.b64decode(whole + b"=" * (-len(whole) % 4))
