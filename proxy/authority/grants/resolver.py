"""Grant resolution: what a token may do now, and whether a presented token is genuine.

Rules of this module:
1. Every answer comes from one read snapshot of the store and has its epoch.
2. While a token has a digest, a presented token is compared with it in constant time and argon2 does not run: knowing a
   prefix gives no way to cause load.
3. Without a digest, argon2 decides, and the digest is stored only if the hash is still the one that was verified.
4. One argon2 run serves only requests with the same token and the same hash; two tokens with the same prefix never
   share a result. One prefix holds at most ``PROOFS_PER_PREFIX`` places of the queue, so that it cannot starve others.
5. A proven token is accepted even if the store cannot be written: its digest is then in the answer only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from proxy.core.dependency_keys import token_key
from proxy.core.errors import AuthorityOverloaded, StoreUnavailable
from proxy.core.model import Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.core.token import TokenFormat, digest, verify_digest
from proxy.observe.logs import get_logger

PROOFS_PER_PREFIX: Final = 4
ATTEMPTS: Final = 4
"""Attempts of one verification, which starts over when the token is rotated during it."""

_log = get_logger("authority.resolver")


class GrantSource(Protocol):
    """The part of the store that resolution uses."""

    async def resolve(self, prefixes: Sequence[str]) -> tuple[int, list[Grant | RefusedGrant]]:
        """The epoch of the answer, and the grant or refusal of each prefix, well-formed or not."""

    async def secret_hash(self, token_id: str) -> str | None:
        """The token's slow hash, or None when the token does not exist."""

    async def remember_digest(self, token_id: str, digest: bytes, expected_hash: str) -> bool:
        """Store the digest of a proven token; false if its hash is no longer the expected one."""


class SecretVerifier(Protocol):
    """Verifies a token against its slow hash."""

    async def verify(self, hash: str, token: str) -> bool:
        """Whether ``hash`` is a hash of ``token``. Raises AuthorityOverloaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """An answer and the epoch of its snapshot."""

    as_of: int
    outcome: Grant | RefusedGrant


class GrantResolver:
    """Resolves prefixes and verifies tokens. Errors of the store pass through."""

    def __init__(self, source: GrantSource, verifier: SecretVerifier, *, tokens: TokenFormat, cache_key: bytes) -> None:
        self._source = source
        self.verifier = verifier
        self._tokens = tokens
        self._cache_key = cache_key
        self._proofs: dict[tuple[str, bytes, str], asyncio.Task[bool]] = {}
        self._by_prefix: Counter[str] = Counter()

    async def resolve(self, prefixes: Sequence[str]) -> tuple[int, list[Grant | RefusedGrant]]:
        """The epoch of one snapshot, and the grant or refusal of each prefix in it."""
        return await self._source.resolve(prefixes)

    async def verify(self, prefix: str, token: str) -> Resolution:
        """Resolve a presented token: a grant, with its digest, only if ``token`` is genuine."""
        resolution = await self._verify(prefix, token, prove=True)
        if resolution is None:
            raise AuthorityOverloaded("a token changed faster than it could be verified")
        return resolution

    async def recognise(self, prefix: str, token: str) -> Resolution | None:
        """Verify without the slow hash; None when only the slow hash could decide."""
        return await self._verify(prefix, token, prove=False)

    async def _verify(self, prefix: str, token: str, *, prove: bool) -> Resolution | None:
        parsed = self._tokens.parse(token)
        if parsed is None or parsed.prefix != prefix:
            as_of, _ = await self._source.resolve((prefix,))
            return Resolution(as_of=as_of, outcome=RefusedGrant(prefix=prefix, reason=Reason.TOKEN_UNKNOWN, depends=()))
        presented = digest(self._cache_key, token.encode("ascii"))
        for _ in range(ATTEMPTS if prove else 1):
            as_of, (outcome,) = await self._source.resolve((prefix,))
            if isinstance(outcome, RefusedGrant):
                return Resolution(as_of=as_of, outcome=outcome)
            if outcome.digest is not None:
                genuine = verify_digest(self._cache_key, token.encode("ascii"), outcome.digest)
                return Resolution(as_of=as_of, outcome=outcome if genuine else _wrong(outcome))
            if not prove:
                break
            stored = await self._source.secret_hash(outcome.token_id)
            if stored is None:
                continue
            if not await self._prove(outcome, presented, stored, token):
                return Resolution(as_of=as_of, outcome=_wrong(outcome))
            try:
                await self._source.remember_digest(outcome.token_id, presented, stored)
            except StoreUnavailable as error:
                _log.warning("a proven token's digest could not be kept", prefix=prefix, error=error)
                return Resolution(as_of=as_of, outcome=replace(outcome, digest=presented))
        return None

    async def _prove(self, grant: Grant, presented: bytes, stored: str, token: str) -> bool:
        key = (grant.prefix, presented, stored)
        proof = self._proofs.get(key)
        if proof is None:
            if self._by_prefix[grant.prefix] >= PROOFS_PER_PREFIX:
                raise AuthorityOverloaded("too many different secrets are being verified for one token")
            self._by_prefix[grant.prefix] += 1
            proof = asyncio.create_task(self.verifier.verify(stored, token), name=f"prove {grant.prefix}")
            self._proofs[key] = proof
            proof.add_done_callback(self._forget(key))
        # Shielded: cancelling one caller must not fail the others.
        return await asyncio.shield(proof)

    def _forget(self, key: tuple[str, bytes, str]) -> Callable[[asyncio.Task[bool]], None]:
        def done(proof: asyncio.Task[bool]) -> None:
            del self._proofs[key]
            self._by_prefix[key[0]] -= 1
            if not self._by_prefix[key[0]]:
                del self._by_prefix[key[0]]
            if not proof.cancelled():
                proof.exception()  # retrieved, also when every caller was cancelled

        return done


def _wrong(grant: Grant) -> RefusedGrant:
    return RefusedGrant(prefix=grant.prefix, reason=Reason.TOKEN_WRONG_SECRET, depends=(token_key(grant.token_id),))
