"""The slow hash of a token's value: the record at rest. The authority implements it with argon2id in a bounded pool."""

from __future__ import annotations

from typing import Protocol


class SecretHasher(Protocol):
    """Hashes and verifies whole token values.

    Both raise AuthorityOverloaded where too many calls are waiting already; neither repeats the token in an error.
    """

    async def hash(self, token: str) -> str:
        """The encoded hash, with its salt and parameters; different on every call."""
        ...

    async def verify(self, hash: str, token: str) -> bool:
        """Whether ``hash`` was made from ``token``; a hash that cannot be read is false."""
        ...
