"""What a new token or key is asked to be, what of it holds whoever asks, and the values.

Rules:

1. A value leaves in the one answer that shows it; what is stored is a slow hash and a keyed digest.
2. Hashing happens outside of any transaction, so that no writer waits for it; whoever calls checks everything again
   afterwards, in the transaction that stores it.
3. The policy is held against a token where it is made or made anew. Without an expiry of its own it gets the longest
   lifetime that there is.
4. Scopes may name more than the role allows: they only narrow it. Whoever asked is told, not refused.
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
from proxy.core.permissions import Permission, PermissionSet, PermissionSyntaxError
from proxy.core.token import TokenFormat, digest
from proxy.services import identifiers
from proxy.services.hashing import SecretHasher
from proxy.services.policy.model import TokenPolicy
from proxy.services.validation import Fields
from proxy.store.records import TokenRow

LONGEST: Final = 1e10
"""Seconds that a token may live at most."""
SCOPES_MOST: Final = 1000
ORGS_MOST: Final = 100
AT_ONCE: Final = 8
"""Values that are hashed at once, or wait for it, for one user."""
NEVER_ENDS: Final = "this token never expires"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRequest:
    """A personal access token that somebody asks for.

    ``user`` is an email or an id; None is whoever asks. ``org`` is a name or an id; ``reach`` by default that
    organisation, or the user's own. ``expires`` is in seconds from now. ``scopes`` None: all that the role allows.
    """

    name: str
    user: str | None = None
    description: str = ""
    org: str | None = None
    reach: Reach | None = None
    expires: float | None = None
    scopes: Iterable[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRequest:
    """A key of one organisation, with a role (``org`` and ``role``), or an organisation token: ``grants`` are the
    permissions by organisation. Organisations are names or ids; ``expires`` and ``scopes`` as with ``NewToken``.
    """

    name: str
    description: str = ""
    org: str | None = None
    role: str | None = None
    grants: Mapping[str, Iterable[str]] | None = None
    expires: float | None = None
    scopes: Iterable[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What of a new token holds whoever asks. ``scopes`` are in the order in which they were given."""

    name: str
    description: str
    expires: float | None
    scopes: tuple[str, ...] | None

    @classmethod
    def of(cls, new: TokenRequest | KeyRequest, fields: Fields) -> Draft:
        """Faults go to ``fields``; before ``fields.done`` the draft may hold anything."""
        return cls(
            name=fields.check(lambda: identifiers.title(new.name, "name")) or "",
            description=fields.check(lambda: identifiers.description(new.description)) or "",
            expires=fields.check(lambda: seconds(new.expires)),
            scopes=None if new.scopes is None else permissions(fields, new.scopes, "scopes"),
        )

    @property
    def texts(self) -> dict[str, str]:
        """What others read of it: for warnings of look-alikes."""
        return {"name": self.name}

    @property
    def stored_scopes(self) -> list[str] | None:
        return None if self.scopes is None else canonical(self.scopes)


def seconds(expires: float | None) -> float | None:
    """A lifetime itself. Raises Invalid."""
    if expires is not None and (not math.isfinite(expires) or not 0 < expires <= LONGEST):
        raise Invalid("expires", f"a lifetime is a positive number of seconds, at most {LONGEST:g}")
    return expires


def permissions(fields: Fields, texts: Iterable[str], place: str) -> tuple[str, ...]:
    """Permissions in their canonical text, in the order given; every fault goes to ``fields``."""
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


def canonical(scopes: Iterable[str]) -> list[str]:
    """Scopes as they are stored: sorted, without repeats."""
    return list(PermissionSet.of(scopes).texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifetime:
    """How long a new value lives, in seconds (None: for ever), and what to tell about it."""

    seconds: float | None
    warnings: tuple[str, ...] = ()

    def end(self, now: float) -> float | None:
        return None if self.seconds is None else now + self.seconds


def lifetime(policy: TokenPolicy, expires: float | None, fields: Fields) -> Lifetime:
    """The lifetime that the policy gives to who asks for ``expires``; what it forbids goes to ``fields``."""
    if expires is None and not policy.require_expiry and policy.max_lifetime is not None:
        longest = policy.max_lifetime
        return Lifetime(seconds=longest, warnings=(f"the policy's maximum lifetime of {longest:g} seconds applies",))
    fault = policy.lifetime_fault(expires)
    if fault is not None:
        fields.fault(*fault)
    return Lifetime(seconds=expires, warnings=(NEVER_ENDS,) if expires is None else ())


def beyond(roles: Iterable[PermissionSet], scopes: Iterable[str] | None) -> tuple[str, ...]:
    """One sentence about scopes that none of these roles reaches now, if there are any."""
    held = tuple(roles)
    apart = [text for text in scopes or () if not any(role.covering(text) for role in held)]
    return (f"the owner's role does not allow {', '.join(apart)} now",) if apart else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A new value with what is stored of it."""

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
    """The row of a token or key that ``actor`` makes at ``now``."""
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
    )


class Minter:
    """Makes values. ``value`` raises AuthorityOverloaded.

    Everybody's values are hashed in one queue: of one user's, or one key's, so few wait there at once that nobody
    else waits long.
    """

    def __init__(self, *, format: TokenFormat, hasher: SecretHasher, cache_key: bytes) -> None:
        self._format = format
        self._hasher = hasher
        self._cache_key = cache_key
        self._waiting: Counter[str] = Counter()

    async def value(self, actor: Actor, kind: Kind, token_id: str | None = None) -> Value:
        """A new value, for a new id or for that of a token that there is."""
        minted = self._format.mint(kind, token_id)
        with self._place(actor):
            hashed = await self._hasher.hash(minted.token)
        return Value(
            token_id=minted.token_id,
            prefix=minted.prefix,
            token=minted.token,
            hash=hashed,
            digest=digest(self._cache_key, minted.token.encode("ascii")),
        )

    @contextmanager
    def _place(self, actor: Actor) -> Iterator[None]:
        if actor.credential is None:
            yield
            return
        who = actor.user_id or actor.id
        if self._waiting[who] >= AT_ONCE:
            raise AuthorityOverloaded("too many values are being made for one user at once")
        self._waiting[who] += 1
        try:
            yield
        finally:
            self._waiting[who] -= 1
            if not self._waiting[who]:
                del self._waiting[who]
