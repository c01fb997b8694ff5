"""The authenticate phase: finds the current grant of the credential that a request presents.

Rules of this module:
1. Nothing is accepted unless the lease on the shared page is valid and the cache has applied every change up to the
   epoch that the page showed when the request was first examined.
2. A credential is taken from one place only; two of them are ambiguous and refused.
3. A wrong checksum is refused here, without a lookup. A wrong secret of a known prefix is refused here too, without
   argon2: the keyed digest that came with the grant decides, in constant time.
4. Requests share the grant of a prefix; every presented secret is verified by itself.
5. The hot path does not wait: ``authenticate`` answers, or returns ``PENDING``, and ``settle`` then waits.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Iterable
from enum import Enum
from typing import Final

from proxy.core.errors import AuthorityOverloaded, AuthorityUnavailable
from proxy.core.identity import IdentityOutputs
from proxy.core.ipc.shared_memory import SLOT_EPOCH, SLOT_LEASE
from proxy.core.model import RefusedGrant
from proxy.core.reasons import Reason
from proxy.core.token import TokenFormat, verify_digest
from proxy.core.token_search import TokenSearch
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.authority_client import AuthorityLink
from proxy.gateway.grants.cache import CacheEntry, GrantCache
from proxy.observe import defects

_ATTEMPTS: Final = 8
_SCHEME: Final = re.compile(rb"([A-Za-z][A-Za-z0-9!#$%&'*+.^_`|~-]*)(?: +([\x21-\x7e]+))?[ \t]*")


class Pending(Enum):
    """The third result of ``authenticate``: only the authority can decide."""

    PENDING = "pending"


PENDING: Final = Pending.PENDING


class Authenticator:
    """Finds the grant of a request's credential.

    ``page`` is the shared page as 8-byte words; ``schemes`` are the places where a token may be presented ("bearer",
    "basic", "x-api-key").
    """

    def __init__(
        self,
        *,
        cache: GrantCache,
        link: AuthorityLink,
        page: memoryview[int],
        tokens: TokenFormat,
        identity: IdentityOutputs,
        schemes: Iterable[str],
    ) -> None:
        self._cache = cache
        self._link = link
        self._page = page
        self._tokens = tokens
        self.search = TokenSearch(tokens)
        self._identity = identity
        self._schemes = frozenset(schemes)
        self.hits = 0
        self.misses = 0

    def authenticate(self, x: Exchange) -> Reason | Pending | None:
        """Find the entry of the presented credential: None when ``x.entry`` is set, else a refusal or ``PENDING``."""
        page = self._page
        x.epoch = epoch = page[SLOT_EPOCH]
        if page[SLOT_LEASE] <= x.started:
            return Reason.AUTHORITY_UNAVAILABLE
        cache = self._cache
        if x.authorization is not None:
            if x.api_key is not None:
                return Reason.CREDENTIAL_AMBIGUOUS
            digest = cache.credential_digest(x.authorization)
        elif x.api_key is not None:
            digest = cache.credential_digest(b"\0" + x.api_key)
        else:
            return Reason.NO_CREDENTIAL
        if cache.applied == epoch:
            entry = cache.by_credential.get(digest)
            if entry is not None:
                entry.used = True
                x.entry = entry
                self.hits += 1
                return None
        token = self.token_of(x)
        if isinstance(token, Reason):
            return token
        parsed = self._tokens.parse(token)
        return Reason.TOKEN_UNKNOWN if parsed is None else self._by_prefix(x, token, parsed.prefix, digest)

    def follow(self, identity: IdentityOutputs, schemes: Iterable[str]) -> bool:
        """Use these identity outputs and credential places from now on. True if they differ from the previous ones.

        The caller then resets the cache: its entries depend on the previous outputs and places.
        """
        before = (self._identity, self._schemes)
        self._identity, self._schemes = identity, frozenset(schemes)
        return before != (self._identity, self._schemes)

    @property
    def epoch(self) -> int:
        """The number of the last acknowledged change."""
        return self._page[SLOT_EPOCH]

    @property
    def lease_held(self) -> bool:
        """Whether the authority's lease is valid, so that cached grants may be used."""
        return self._page[SLOT_LEASE] > time.monotonic_ns()

    async def settle(self, x: Exchange) -> Reason | None:
        """Finish a pending ``authenticate``: fetch changes, look up the prefix, verify the secret at the authority."""
        self.misses += 1
        try:
            return await self._settle(x)
        except AuthorityUnavailable:
            return Reason.AUTHORITY_UNAVAILABLE
        except AuthorityOverloaded:
            return Reason.OVERLOADED
        except Exception as error:  # noqa: BLE001 - on any failure the client gets a refusal
            defects.report("a token could not be judged", error)
            return Reason.AUTHORITY_UNAVAILABLE

    async def _settle(self, x: Exchange) -> Reason | None:
        token = self.token_of(x)
        if isinstance(token, Reason):
            return token
        parsed = self._tokens.parse(token)
        if parsed is None:
            return Reason.TOKEN_UNKNOWN
        digest, prefix = self._credential_digest(x), parsed.prefix
        cache, link = self._cache, self._link
        for _ in range(_ATTEMPTS):
            if cache.applied < x.epoch:
                await link.sync(x.epoch)
            outcome = self._by_prefix(x, token, prefix, digest)
            if outcome is PENDING:
                held = cache.entries.get(prefix)
                if held is None:
                    answer = await link.lookup(prefix, known=cache.good_lately(prefix))
                else:
                    answer = await link.verify(prefix, token)
                # An answer older than a change in the cache could restore a revoked grant.
                if answer.as_of < max(x.epoch, cache.applied):
                    continue
                found = answer.found
                if isinstance(found, RefusedGrant):
                    if found.reason is not Reason.TOKEN_WRONG_SECRET:
                        cache.store_refused(found, time.monotonic())
                    outcome = found.reason
                else:
                    cache.store(found, self._identity)
                    outcome = self._by_prefix(x, token, prefix, digest)
            if outcome is not PENDING:
                if self._page[SLOT_LEASE] <= time.monotonic_ns():
                    return Reason.AUTHORITY_UNAVAILABLE
                return outcome
        return Reason.AUTHORITY_UNAVAILABLE

    def token_of(self, x: Exchange) -> str | Reason:
        """The token that ``x`` presents, or the reason it has none: RFC 6750 section 2.1, RFC 7617, ``X-API-Key``."""
        if x.api_key is not None:
            return x.api_key.decode("latin-1") if x.api_key else Reason.CREDENTIAL_MALFORMED
        if x.authorization is None:
            return Reason.NO_CREDENTIAL
        matched = _SCHEME.fullmatch(x.authorization)
        if matched is None:
            return Reason.CREDENTIAL_MALFORMED
        scheme = matched[1].lower().decode("ascii")
        if scheme not in self._schemes:
            return Reason.NO_CREDENTIAL
        if matched[2] is None:
            return Reason.CREDENTIAL_MALFORMED
        if scheme == "bearer":
            return matched[2].decode("ascii")
        return _basic(matched[2])

    def prefix_of(self, x: Exchange) -> str | None:
        """The public prefix of the token that ``x`` presents, which logs may show; None without a well-formed token."""
        token = self.token_of(x)
        parsed = None if isinstance(token, Reason) else self._tokens.parse(token)
        return None if parsed is None else parsed.prefix

    def foreign_credentials(self, x: Exchange) -> bytes:
        """The credential lines of ``x`` that are not patgate's, as received: they belong to the backend's own login."""
        lines = b""
        if x.authorization is not None and not self.search.contains_credential(x.authorization):
            lines += b"\r\nAuthorization: " + x.authorization
        if x.api_key is not None and not self.search.contains_credential(x.api_key):
            lines += b"\r\nX-API-Key: " + x.api_key
        return lines

    def _credential_digest(self, x: Exchange) -> bytes:
        if x.authorization is not None:
            return self._cache.credential_digest(x.authorization)
        # A NUL cannot occur in a field value, so an Authorization value never has the digest of an API key.
        return self._cache.credential_digest(b"\0" + (x.api_key or b""))

    def _by_prefix(self, x: Exchange, token: str, prefix: str, digest: bytes) -> Reason | Pending | None:
        """Judge the credential by what the cache holds for its prefix; ``PENDING`` if that is not enough."""
        cache = self._cache
        if cache.applied < x.epoch:
            return PENDING
        entry: CacheEntry | None = cache.entries.get(prefix)
        if entry is None:
            refused = cache.refused(prefix, time.monotonic())
            return PENDING if refused is None else refused.reason
        if entry.grant.digest is None:
            return PENDING
        if not verify_digest(self._link.cache_key, token.encode("ascii"), entry.grant.digest):
            return Reason.TOKEN_WRONG_SECRET
        entry.used = True
        cache.remember(entry, digest)
        x.entry = entry
        return None


def _basic(encoded: bytes) -> str | Reason:
    """The token in Basic credentials: the password, or the user name when the password is empty or a placeholder."""
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode("latin-1").partition(":")
    except binascii.Error:
        return Reason.CREDENTIAL_MALFORMED
    if not colon:
        return Reason.CREDENTIAL_MALFORMED
    token = user if password in ("", "x-oauth-basic") else password
    return token or Reason.CREDENTIAL_MALFORMED
