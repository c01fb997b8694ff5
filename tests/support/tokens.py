"""Forged tokens, as an outsider can make them: the right form and checksum, but not in the store."""

from __future__ import annotations

import secrets
import zlib

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def forged(prefix: str) -> str:
    """A token with that public prefix and a valid checksum (docs/tokens.md): only a look-up can refuse it."""
    text = prefix + "_" + "".join(secrets.choice(BASE62) for _ in range(32))
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    return text + digits


def unknown_prefix(brand: str = "acme") -> str:
    """A public prefix that no token has."""
    return f"{brand}_pat_" + "".join(secrets.choice(BASE62) for _ in range(12))
