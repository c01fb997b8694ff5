"""The authenticate phase: finds the current grant of the credential that a request presents.

Rules of this module:
1. Nothing is accepted unless the lease on the shared page is valid and the cache has applied every change up to the
   epoch that the page showed when the request was first examined.
2. A credential is taken from one place of the route only; two of them are ambiguous and refused
   (``core.credential_places``).
3. A wrong checksum is refused here, without a lookup. A wrong secret of a known prefix is refused here too, without
   argon2: the keyed digest that came with the grant decides, in constant time.
4. Requests share the grant of a prefix; every presented secret is verified by itself.
5. The hot path does not wait: ``authenticate`` answers, or returns ``PENDING``, and ``settle`` then waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import Enum
from typing import Final

from proxy.core.credential_places import (
    AUTHORIZATION,
    WEBSOCKET_FIELD,
    CredentialPlaces,
    Presented,
    is_patgates,
    protocols,
)
from proxy.core.errors import AuthorityOverloaded, AuthorityUnavailable
from proxy.core.identity import IdentityOutputs
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import SLOT_EPOCH, SLOT_LEASE
from proxy.core.model import RefusedGrant
from proxy.core.reasons import Reason
from proxy.core.routes import Route
from proxy.core.token import TokenFormat, verify_digest
from proxy.core.token_search import TokenSearch
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.authority_client import AuthorityLink
from proxy.gateway.grants.cache import CacheEntry, GrantCache
from proxy.observe import defects

_ATTEMPTS: Final = 8


class Pending(Enum):
    """The third result of ``authenticate``: only the authority can decide."""

    PENDING = "pending"


PENDING: Final = Pending.PENDING


class Authenticator:
    """Finds the grant of a request's credential.

    ``page`` is the shared page as 8-byte words; ``places`` are where a token may be presented on routes that have no
    places of their own, and ``routes`` all routes.
    """

    def __init__(
        self,
        *,
        cache: GrantCache,
        link: AuthorityLink,
        page: memoryview[int],
        tokens: TokenFormat,
        identity: IdentityOutputs,
        places: CredentialPlaces,
        routes: Iterable[Route] = (),
    ) -> None:
        self._cache = cache
        self._link = link
        self._page = page
        self._tokens = tokens
        self.search = TokenSearch(tokens)
        self._identity = identity
        self._places = places
        self._of_routes = _own_places(routes, places)
        # Where all routes have the same places, a cached credential needs no look at its place.
        self._uniform = not self._of_routes
        self.hits = 0
        self.misses = 0

    def authenticate(self, x: Exchange) -> Reason | Pending | None:
        """Find the entry of the presented credential: None when ``x.entry`` is set, else a refusal or ``PENDING``."""
        page = self._page
        x.epoch = epoch = page[SLOT_EPOCH]
        if page[SLOT_LEASE] <= x.started:
            return Reason.AUTHORITY_UNAVAILABLE
        cache = self._cache
        authorization, fields = x.authorization, x.presented
        presented: Presented | Reason | None = None
        key: bytes | None
        if fields is not None:
            key = self._places_for(x).only_plain(authorization, fields)
        elif self._uniform:
            if authorization is None:
                return Reason.NO_CREDENTIAL
            key = authorization
        else:
            key = None
        if key is None:
            presented = self._presented(x)
            if isinstance(presented, Reason):
                return presented
            key = presented.cache_key
        digest = cache.credential_digest(key)
        if cache.applied == epoch:
            entry = cache.by_credential.get(digest)
            if entry is not None:
                entry.used = True
                x.entry = entry
                self.hits += 1
                return None
        if presented is None:
            presented = self._presented(x)
        token = presented if isinstance(presented, Reason) else presented.token()
        if isinstance(token, Reason):
            return token
        parsed = self._tokens.parse(token)
        return Reason.TOKEN_UNKNOWN if parsed is None else self._by_prefix(x, token, parsed.prefix, digest)

    def follow(self, identity: IdentityOutputs, places: CredentialPlaces, routes: Iterable[Route]) -> bool:
        """Use these identity outputs and credential places from now on. True if they differ from the previous ones.

        The caller then resets the cache: its entries depend on the previous outputs and places.
        """
        before = (self._identity, self._places.keys, self._of_routes)
        self._identity, self._places = identity, places
        self._of_routes = _own_places(routes, places)
        self._uniform = not self._of_routes
        return before != (identity, places.keys, self._of_routes)

    @property
    def epoch(self) -> int:
        """The number of the last acknowledged change."""
        return self._page[SLOT_EPOCH]

    @property
    def lease_held(self) -> bool:
        """Whether the authority's lease is valid, so that cached grants may be used."""
        return self._page[SLOT_LEASE] > boottime_ns()

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
        presented = self._presented(x)
        if isinstance(presented, Reason):
            return presented
        token = presented.token()
        if isinstance(token, Reason):
            return token
        parsed = self._tokens.parse(token)
        if parsed is None:
            return Reason.TOKEN_UNKNOWN
        cache, link = self._cache, self._link
        digest, prefix = cache.credential_digest(presented.cache_key), parsed.prefix
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
                if self._page[SLOT_LEASE] <= boottime_ns():
                    return Reason.AUTHORITY_UNAVAILABLE
                return outcome
        return Reason.AUTHORITY_UNAVAILABLE

    def prefix_of(self, x: Exchange) -> str | None:
        """The public prefix of the token that ``x`` presents, which logs may show; None without a well-formed token."""
        presented = self._choose(x)
        token = presented if isinstance(presented, Reason) else presented.token()
        parsed = None if isinstance(token, Reason) else self._tokens.parse(token)
        return None if parsed is None else parsed.prefix

    def foreign_credentials(self, x: Exchange) -> bytes:
        """The lines of ``x`` in credential places that are not patgate's: they belong to the backend's own login.

        The credential by which ``x`` was authenticated is not among them, nor is any field that contains a token.
        """
        chosen: Presented | Reason | None = None
        if x.entry is not None:
            presented = x.presented
            if presented is not None and self._places_for(x).only_plain(x.authorization, presented) is not None:
                return b""
            chosen = self._choose(x)
        others = self._others(x, chosen.field if isinstance(chosen, Presented) else b"")
        return b"".join([b"\r\n" + line for value, line in others if not self.search.contains_credential(value)])

    def _presented(self, x: Exchange) -> Presented | Reason:
        """The credential of ``x``, or the reason to refuse it: no credential, several, or a token in another field."""
        chosen = self._choose(x)
        presented = x.presented
        if presented is None or presented.drop_misplaced or chosen is Reason.CREDENTIAL_AMBIGUOUS:
            return chosen
        # Without a credential, Authorization is the one that was meant, and the refusal is about its scheme.
        others = self._others(x, chosen.field if isinstance(chosen, Presented) else AUTHORIZATION)
        if any([self.search.contains_credential(value) for value, _ in others]):
            return Reason.TOKEN_MISPLACED
        return chosen

    def _choose(self, x: Exchange) -> Presented | Reason:
        return self._places_for(x).choose(x.authorization, x.presented, websocket=x.websocket)

    def _others(self, x: Exchange, field: bytes) -> list[tuple[bytes, bytes]]:
        """The value and the line of every field of ``x`` that is a place on some route, except ``field``."""
        others: list[tuple[bytes, bytes]] = []
        authorization, presented = x.authorization, x.presented
        if authorization is not None and field != AUTHORIZATION:
            others.append((authorization, b"Authorization: " + authorization))
        if presented is None:
            return others
        websocket = x.websocket and self._places_for(x).websocket
        for name, value, line in presented.fields:
            if name == WEBSOCKET_FIELD and websocket:
                left = b", ".join([each for each in protocols(value) if not is_patgates(each)])
                if left:
                    others.append((left, b"Sec-WebSocket-Protocol: " + left))
            elif name != field:
                others.append((value, line))
        return others

    def _places_for(self, x: Exchange) -> CredentialPlaces:
        """The places of the route of ``x``."""
        match = x.match
        own = None if match is None else match.route.credentials
        return self._places if own is None else own

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


def _own_places(routes: Iterable[Route], places: CredentialPlaces) -> frozenset[CredentialPlaces]:
    """The sets of places of routes that take tokens elsewhere than in ``places``."""
    own = [route.credentials for route in routes if route.credentials is not None]
    return frozenset(each for each in own if each.keys != places.keys)
