"""The protocol for slow hashing of token secrets, which the authority implements with argon2id in a bounded pool."""

from __future__ import annotations

from typing import Protocol


class SecretHasher(Protocol):
    """Hashes and verifies whole token values.

    Both methods raise AuthorityOverloaded if too many calls are waiting already. No error repeats the token.
    """

    async def hash(self, token: str) -> str:
        """The encoded hash, with its salt and parameters; different on every call."""
        ...

    async def verify(self, hash: str, token: str) -> bool:
        """Whether ``hash`` was made from ``token``; a hash that cannot be read is false."""
        ...
