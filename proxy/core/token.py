"""The token format: ``<brand>_<kind>_<id>_<secret><checksum>``.

1. Only this module parses tokens. The result has the public parts (kind, id, prefix), never the secret.
2. ``parse`` returns None for everything but a whole token of this brand with a correct checksum; it never raises and
   gives no cause.
3. Randomness comes from the system's CSPRNG (``secrets``), without bias between characters.
4. Digests are compared in constant time. The checksum is not secret and needs no such comparison: it saves a lookup for
   a mistyped token.
5. No repr, message or exception of this module holds a token.

id: 12, secret: 32 characters of base62 (``0-9A-Za-z``; 71 and 190 bits). checksum: the CRC-32 (IEEE 802.3, as in zlib)
of the ASCII bytes before it, in base62, most significant digit first, left-padded with ``0`` to 6.
"""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field
from typing import Final

from proxy.core.kinds import PATTERN, Kind

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 32
CHECKSUM_LENGTH: Final = 6
DIGEST_SIZE: Final = 32

WHOLE_TOKEN: Final = "this is a whole token: give only its id or public prefix, and replace the token if others saw it"  # noqa: S105
"""The message for a whole token in the place of an id."""

BRAND: Final = re.compile(r"[a-z][a-z0-9]{1,19}", re.ASCII)
_ID: Final = re.compile(rf"[0-9A-Za-z]{{{ID_LENGTH}}}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Minted:
    """A new token; ``token`` is the secret value, which is shown once and is not in the repr."""

    token_id: str
    prefix: str
    token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedToken:
    """The public parts of a well-formed token."""

    kind: Kind
    token_id: str
    prefix: str


def checksum(text: str) -> str:
    """The six base62 characters that follow ``text`` (ASCII) in a token."""
    rest = zlib.crc32(text.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


class TokenFormat:
    """The tokens of one brand. Raises ValueError for a brand outside ``[a-z][a-z0-9]{1,19}``."""

    __slots__ = ("_regex", "brand")

    def __init__(self, brand: str) -> None:
        if BRAND.fullmatch(brand) is None:
            raise ValueError("a brand is 2 to 20 of a-z and 0-9, beginning with a letter")
        self.brand: Final = brand
        self._regex: Final = re.compile(
            rf"({brand}_({PATTERN})_([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})",
            re.ASCII,
        )

    @property
    def pattern(self) -> str:
        """A regular expression (valid in PCRE, RE2 and Python) that finds tokens of this brand in text."""
        return rf"\b{self.embedded_pattern}\b"

    @property
    def embedded_pattern(self) -> str:
        """As ``pattern``, but also matches a token between other letters: for keeping tokens out of other fields."""
        tail = SECRET_LENGTH + CHECKSUM_LENGTH
        return rf"{self.brand}_(?:{PATTERN})_[0-9A-Za-z]{{{ID_LENGTH}}}_[0-9A-Za-z]{{{tail}}}"

    def prefix_of(self, kind: Kind, token_id: str) -> str:
        """The public prefix, ``<brand>_<kind>_<id>``; a rotation does not change it."""
        return f"{self.brand}_{kind.value}_{token_id}"

    def mint(self, kind: Kind, token_id: str | None = None) -> Minted:
        """A token with a new secret, for a new id or (rotation) for ``token_id``; ValueError if that is not an id."""
        if token_id is None:
            token_id = _random(ID_LENGTH)
        elif _ID.fullmatch(token_id) is None:
            raise ValueError("a token id is 12 of 0-9, A-Z and a-z")
        prefix = self.prefix_of(kind, token_id)
        body = f"{prefix}_{_random(SECRET_LENGTH)}"
        return Minted(token_id=token_id, prefix=prefix, token=body + checksum(body))

    def parse(self, text: str) -> ParsedToken | None:
        """The public parts of ``text`` if it is a whole token of this brand with a correct checksum, else None."""
        found = self._regex.fullmatch(text)
        if found is None:
            return None
        body, kind, token_id, check = found.groups()
        if checksum(body) != check:
            return None
        return ParsedToken(kind=Kind(kind), token_id=token_id, prefix=body[: -SECRET_LENGTH - 1])


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def digest(cache_key: bytes, token: bytes) -> bytes:
    """HMAC-SHA256 of a whole token under the node's cache key: 32 bytes, for comparisons only."""
    return hmac.digest(cache_key, token, "sha256")


def verify_digest(cache_key: bytes, token: bytes, expected: bytes) -> bool:
    """Whether ``token`` has the digest ``expected``; compares in constant time."""
    return hmac.compare_digest(hmac.digest(cache_key, token, "sha256"), expected)
