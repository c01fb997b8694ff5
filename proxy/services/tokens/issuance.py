"""Issuing tokens and keys: validates the request, applies the policy's lifetime, and generates the secret.

Rules:

1. A token's value is only in the one answer that shows it. The store has a slow hash and a keyed digest.
2. Hashing happens outside of any transaction, so that no writer waits for it. The calling service checks everything
   again in the transaction that stores the token.
3. The policy is enforced when a token is created or regenerated. Without a requested expiry a token gets the longest
   lifetime that the policy allows.
4. Scopes may name more than the role allows, since they only restrict it. The caller gets a warning, not an error.
5. IP ranges are stored in their shortest form. There is no token with ranges that include nothing: None means any
   address, and an empty list is an error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from proxy.core.errors import AuthorityOverloaded, Invalid
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Actor, TokenStatus
from proxy.core.networks import RANGES_MOST, AddressRanges, NetworkSyntaxError, parse_network
from proxy.core.permissions import Permission, PermissionSet, PermissionSyntaxError
from proxy.core.token import TokenFormat, digest
from proxy.services import identifiers
from proxy.services.policy.model import TokenPolicy
from proxy.services.secret_hasher import SecretHasher
from proxy.services.validation import Fields
from proxy.store.records import TokenRow

LONGEST: Final = 1e10
"""The longest lifetime of a token, in seconds."""
SCOPES_MOST: Final = 1000
ORGS_MOST: Final = 100
AT_ONCE: Final = 8
"""The most values of one user that are being hashed, or wait for it."""
NEVER_ENDS: Final = "this token never expires"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRequest:
    """The request for a personal access token.

    ``user`` is an email or an id, by default the caller's own. ``org`` is a name or an id. ``reach`` is by default that
    organisation or, without one, personal. ``expires`` is in seconds from now. ``scopes`` None: everything that the
    role allows. ``ip_ranges`` None: from any address.
    """

    name: str
    user: str | None = None
    description: str = ""
    org: str | None = None
    reach: Reach | None = None
    expires: float | None = None
    scopes: Iterable[str] | None = None
    ip_ranges: Iterable[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRequest:
    """The request for a key of one organisation (``org`` and ``role``), or for an organisation token (``grants``).

    ``grants`` are the permissions by organisation. Organisations are names or ids; ``expires``, ``scopes`` and
    ``ip_ranges`` are as in ``TokenRequest``.
    """

    name: str
    description: str = ""
    org: str | None = None
    role: str | None = None
    grants: Mapping[str, Iterable[str]] | None = None
    expires: float | None = None
    scopes: Iterable[str] | None = None
    ip_ranges: Iterable[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The validated fields of a request that do not depend on the caller. ``scopes`` are in the order given."""

    name: str
    description: str
    expires: float | None
    scopes: tuple[str, ...] | None
    ip_ranges: tuple[str, ...] | None

    @classmethod
    def of(cls, new: TokenRequest | KeyRequest, fields: Fields) -> Draft:
        """The draft of a request. Errors go to ``fields``: the draft is valid only after ``fields.done``."""
        return cls(
            name=fields.check(lambda: identifiers.title(new.name, "name")) or "",
            description=fields.check(lambda: identifiers.description(new.description)) or "",
            expires=fields.check(lambda: seconds(new.expires)),
            scopes=None if new.scopes is None else permissions(fields, new.scopes, "scopes"),
            ip_ranges=None if new.ip_ranges is None else ip_ranges(fields, new.ip_ranges),
        )

    @property
    def texts(self) -> dict[str, str]:
        """The texts that others read, for the warnings about look-alike letters."""
        return {"name": self.name}

    @property
    def stored_scopes(self) -> list[str] | None:
        """The scopes as they are stored: sorted, without repeats."""
        return None if self.scopes is None else canonical(self.scopes)


def seconds(expires: float | None) -> float | None:
    """The lifetime, unchanged. Raises Invalid."""
    if expires is not None and (not math.isfinite(expires) or not 0 < expires <= LONGEST):
        raise Invalid("expires", f"a lifetime is a positive number of seconds, at most {LONGEST:g}")
    return expires


def permissions(fields: Fields, texts: Iterable[str], place: str) -> tuple[str, ...]:
    """Permissions in canonical form, in the order given; errors go to ``fields``."""
    found = []
    for position, text in enumerate(texts):
        if position >= SCOPES_MOST:
            fields.fault(place, f"at most {SCOPES_MOST} permissions")
            break
        try:
            identifiers.refuse_tokens(text, f"{place}[{position}]")
            found.append(str(Permission.parse(text)))
        except Invalid as error:
            fields.fault(*error.errors[0])
        except PermissionSyntaxError as error:
            fields.fault(f"{place}[{position}]", str(error))
    return tuple(found)


def ip_ranges(fields: Fields, texts: Iterable[str]) -> tuple[str, ...]:
    """IP ranges as they are stored, in their shortest form; errors go to ``fields``."""
    networks, position = [], -1
    for position, text in enumerate(texts):
        if position >= RANGES_MOST:
            fields.fault("ip_ranges", f"at most {RANGES_MOST} networks")
            break
        try:
            networks.append(parse_network(text))
        except NetworkSyntaxError as error:
            fields.fault(f"ip_ranges[{position}]", f"this {error}")
    if position < 0:
        fields.fault("ip_ranges", "name at least one network, or none at all for any address")
    return AddressRanges(networks).texts


def canonical(scopes: Iterable[str]) -> list[str]:
    """Scopes as they are stored: sorted, without repeats."""
    return list(PermissionSet.of(scopes).texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifetime:
    """The lifetime of a new value in seconds (None: it never expires), with warnings for the caller."""

    seconds: float | None
    warnings: tuple[str, ...] = ()

    def end(self, now: float) -> float | None:
        """The expiry of a value that is issued at ``now``, in unix seconds."""
        return None if self.seconds is None else now + self.seconds


def lifetime(policy: TokenPolicy, expires: float | None, fields: Fields) -> Lifetime:
    """The lifetime that the policy allows for a requested ``expires``; violations go to ``fields``."""
    if expires is None and not policy.require_expiry and policy.max_lifetime is not None:
        longest = policy.max_lifetime
        return Lifetime(seconds=longest, warnings=(f"the policy's maximum lifetime of {longest:g} seconds applies",))
    fault = policy.lifetime_fault(expires)
    if fault is not None:
        fields.fault(*fault)
    return Lifetime(seconds=expires, warnings=(NEVER_ENDS,) if expires is None else ())


def ineffective_scopes(roles: Iterable[PermissionSet], scopes: Iterable[str] | None) -> tuple[str, ...]:
    """A warning that names the scopes which none of these roles allows now, if there are any."""
    held = tuple(roles)
    apart = [text for text in scopes or () if not any(role.covering(text) for role in held)]
    return (f"the owner's role does not allow {', '.join(apart)} now",) if apart else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A new token value with the hash and digest to store."""

    token_id: str
    prefix: str
    token: str = field(repr=False)
    hash: str = field(repr=False)
    digest: bytes = field(repr=False)


def new_row(
    value: Value,
    draft: Draft,
    actor: Actor,
    now: float,
    *,
    kind: Kind,
    reach: Reach,
    expires_at: float | None,
    user_id: str | None = None,
    org_id: str | None = None,
    role: str | None = None,
) -> TokenRow:
    """The row of a token or key that ``actor`` creates at ``now`` (unix seconds)."""
    return TokenRow(
        id=value.token_id,
        prefix=value.prefix,
        kind=kind,
        reach=reach,
        name=draft.name,
        description=draft.description,
        user_id=user_id,
        org_id=org_id,
        role=role,
        scopes=draft.stored_scopes,
        status=TokenStatus.ACTIVE,
        hash=value.hash,
        digest=value.digest,
        parent_id=None if actor.credential is None else actor.credential.token_id,
        created_by_kind=actor.kind.value,
        created_by=actor.id,
        created_at=now,
        updated_at=now,
        expires_at=expires_at,
        ip_ranges=None if draft.ip_ranges is None else list(draft.ip_ranges),
    )


class Minter:
    """Generates and hashes token values.

    All values are hashed through one queue. One user, or one key, may have at most ``AT_ONCE`` there, so that others
    do not wait long.
    """

    def __init__(self, *, format: TokenFormat, hasher: SecretHasher, cache_key: bytes) -> None:
        self._format = format
        self._hasher = hasher
        self._cache_key = cache_key
        self._waiting: Counter[str] = Counter()

    async def value(self, actor: Actor, kind: Kind, token_id: str | None = None) -> Value:
        """A new value, for a new id or for an existing token's. Raises AuthorityOverloaded."""
        minted = self._format.mint(kind, token_id)
        with self._queue_slot(actor):
            hashed = await self._hasher.hash(minted.token)
        return Value(
            token_id=minted.token_id,
            prefix=minted.prefix,
            token=minted.token,
            hash=hashed,
            digest=digest(self._cache_key, minted.token.encode("ascii")),
        )

    @contextmanager
    def _queue_slot(self, actor: Actor) -> Iterator[None]:
        if actor.credential is None:
            yield
            return
        who = actor.user_id or actor.id
        if self._waiting[who] >= AT_ONCE:
            raise AuthorityOverloaded("too many values are being generated for one user at once")
        self._waiting[who] += 1
        try:
            yield
        finally:
            self._waiting[who] -= 1
            if not self._waiting[who]:
                del self._waiting[who]
