"""Generating well-formed tokens that no store has, with a valid checksum, as fast as an attacker could.

Speed comes from tables: an id and a secret are each assembled from a few of some thousand random pieces, and the
CRC-32, below 62 ** 6, is written as two of the 62 ** 3 groups of three characters. No two tokens are the same.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Final

from bench.load.workload import BRAND
from proxy.core.kinds import Kind
from proxy.core.token import ALPHABET, CHECKSUM_LENGTH, ID_LENGTH, SECRET_LENGTH, TokenFormat

_GROUP: Final = CHECKSUM_LENGTH // 2
_GROUPS: Final = tuple("".join(group).encode() for group in product(ALPHABET, repeat=_GROUP))
_PIECES: Final = 1 << 12


def unknown_tokens(seed: int) -> Iterator[bytes]:
    """Tokens of ``workload.BRAND`` with ids that no store has; 16,777,216 different ones, and more never."""
    rng = random.Random(seed)
    head = TokenFormat(BRAND).prefix_of(Kind.PAT, "").encode()
    fronts, backs = _pieces(rng, ID_LENGTH // 2), _pieces(rng, ID_LENGTH // 2)
    secrets = _pieces(rng, SECRET_LENGTH)
    for front in fronts:
        begun = head + front
        # Another order each time, so that an id and a secret are not seen together twice.
        rng.shuffle(secrets)
        for back, secret in zip(backs, secrets, strict=True):
            yield _checked(begun + back + b"_" + secret)


def wrong_secrets(token: str, seed: int) -> Iterator[bytes]:
    """Tokens with the public prefix of ``token`` and other secrets, without end."""
    rng = random.Random(seed)
    begun = token[: -SECRET_LENGTH - CHECKSUM_LENGTH].encode()
    fronts, backs = _pieces(rng, SECRET_LENGTH // 2), _pieces(rng, SECRET_LENGTH // 2)
    while True:
        yield _checked(begun + rng.choice(fronts) + rng.choice(backs))


def _checked(body: bytes) -> bytes:
    high, low = divmod(zlib.crc32(body), len(_GROUPS))
    return body + _GROUPS[high] + _GROUPS[low]


def _pieces(rng: random.Random, length: int) -> list[bytes]:
    found: set[bytes] = set()
    while len(found) < _PIECES:
        found.add("".join(rng.choices(ALPHABET, k=length)).encode())
    return list(found)
