"""Fuzz target: the token parser agrees with a reading by position, and tokens are found in other text.

The first byte of an input selects the brand; the rest is text, each byte a character.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

from proxy.core.kinds import Kind
from proxy.core.token import TokenFormat, checksum
from tests.fuzz.targets.target import Target

BRANDS: Final = ("acme", "pat", "ac", "a0123456789012345678")
FORMATS: Final = tuple(TokenFormat(brand) for brand in BRANDS)
EMBEDDED: Final = tuple(re.compile(tokens.embedded_pattern) for tokens in FORMATS)
SCANNED: Final = tuple(re.compile(tokens.pattern) for tokens in FORMATS)
_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def reference(brand: str, text: str) -> tuple[str, str, str] | None:
    """Kind, id and prefix, read by position."""
    kind = text[len(brand) + 1 : len(brand) + 4]
    if kind not in [member.value for member in Kind]:
        return None
    at = len(f"{brand}_{kind}_")
    token_id, secret, check = text[at : at + 12], text[at + 13 : at + 45], text[at + 45 :]
    if f"{brand}_{kind}_{token_id}_{secret}{check}" != text or (len(token_id), len(secret), len(check)) != (12, 32, 6):
        return None
    if not all(character in _DIGITS for character in token_id + secret + check):
        return None
    value = 0
    for digit in check:
        value = value * 62 + _DIGITS.index(digit)
    if zlib.crc32(text[:-6].encode()) != value:
        return None
    return kind, token_id, text[: at + 12]


def run(data: bytes) -> None:
    which = data[0] % len(BRANDS) if data else 0
    brand, tokens, text = BRANDS[which], FORMATS[which], data[1:].decode("latin-1")
    parsed = tokens.parse(text)
    expected = reference(brand, text)
    assert (None if parsed is None else (parsed.kind.value, parsed.token_id, parsed.prefix)) == expected
    length = len(brand) + 1 + 3 + 1 + 12 + 1 + 38
    held = [at for at in range(len(text)) if tokens.parse(text[at : at + length]) is not None]
    assert EMBEDDED[which].search(text) or not held, "a token within other text is not found"
    if parsed is not None:
        assert SCANNED[which].fullmatch(text)


_BODY: Final = "acme_pat_0123456789Ab_0123456789ABCDEFGHIJKLMNOPQRSTUV"
_WHOLE: Final = (_BODY + checksum(_BODY)).encode()

TARGET: Final = Target(
    name="token",
    run=run,
    seeds=(
        b"\0" + _WHOLE,
        b"\0acme_pat_0123456789Ab_" + b"0" * 34 + _WHOLE + b"acme",
        b"\1pat_key_abcdefghijkl_abcdefghijklmnopqrstuvwxyzABCDEF000000",
        b"\2ac_pat_000000000000_00000000000000000000000000000000000000 ",
        b"\3a0123456789012345678_pat_0123456789Ab_" + b"z" * 38 + b"\n",
        b"\0acme_pat_0123456789Ab_" + b"0" * 34 + b"acme_pat_0123456789Ab_" + b"0" * 38,
    ),
    pieces=(
        _WHOLE, b"acme", b"_pat_", b"_key_", b"_", b"0123456789Ab", b"0" * 32, b"\n", b"-", b"\xc0", b"\xb2", b" ",
        b"Z", b"9",
    ),
    longest=200,
)  # fmt: skip
