"""The shared values: grants, actors, credentials, and the vocabularies of their fields.

A grant is what one token may do at one epoch of the store. It holds only what the decision, the identity headers and
the log need, and never a secret: ``digest`` is an HMAC whose key is not part of the grant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from proxy.core.kinds import WORDS, Kind, Reach
from proxy.core.networks import AddressRanges
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason


class UserStatus(StrEnum):
    """A user's status; only an active user's tokens work."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REMOVED = "removed"


class TokenStatus(StrEnum):
    """A token's state; ``expired`` is computed from the clock and never stored."""

    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"


class ActorKind(StrEnum):
    """The kind of an actor in an audit event that is not a credential."""

    PERSON = "person"
    SYSTEM = "system"


ACTOR_KINDS: Final = (ActorKind.PERSON.value, *WORDS, ActorKind.SYSTEM.value)
"""All words for the kind of an actor."""


class Access(StrEnum):
    """Who may use a route: tokens, anyone, users of the backend's own login, or never a token."""

    TOKEN = "token"  # noqa: S105 - the name of a kind of access
    PUBLIC = "public"
    PASSTHROUGH = "passthrough"
    DENIED = "denied"


class RefusalFormat(StrEnum):
    """The body of a refusal: a problem document (RFC 9457), a line of text, or JSON with what clients show of it."""

    PROBLEM = "problem"
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credential:
    """The token with which an actor authenticated, as verified; a change checks that it is still valid.

    ``digest`` is the keyed digest of the presented value.
    """

    token_id: str
    prefix: str
    digest: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who performs an action: ``id`` is stable, ``name`` is for people (an email, a token's name).

    ``user_id`` is the user whose account it happens in, "" for none. ``address`` and ``request_id`` are those of the
    request. Without a ``credential`` the actor is the operator or patgate itself, which may do everything.
    """

    kind: ActorKind | Kind
    id: str
    name: str
    user_id: str = ""
    address: str = ""
    request_id: str = ""
    credential: Credential | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OrgGrant:
    """What a token with several organisations may do in one of them; ``role`` is "" if no role gives it."""

    org_id: str
    org_name: str
    role: str
    permissions: PermissionSet


def by_org(orgs: Iterable[OrgGrant]) -> dict[str, OrgGrant]:
    """The organisations by id and by name, which never collide: a name has no ``_``."""
    return {key: org for org in orgs for key in (org.org_id, org.org_name)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What a token may do now. Text fields without a value are "" (the organisation of a personal token).

    ``permissions`` are the role's current ones; ``scopes`` narrow them, None does not. ``ranges`` are the addresses
    from which the token may be used, None for any. ``orgs`` holds the organisations of a token of reach ``account`` or
    ``orgs``, by id and by name, and is None for the other reaches. ``expires_at`` is in unix seconds. ``digest`` is
    None until the token was verified once. ``depends`` holds the keys of ``proxy.core.dependency_keys`` whose change
    invalidates this grant.
    """

    prefix: str
    token_id: str
    kind: Kind
    token_name: str
    digest: bytes | None = field(repr=False)
    user_id: str
    email: str
    org_id: str
    org_name: str
    reach: Reach
    role: str
    permissions: PermissionSet
    scopes: PermissionSet | None
    expires_at: float | None
    depends: tuple[str, ...]
    orgs: Mapping[str, OrgGrant] | None = None
    ranges: AddressRanges | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedGrant:
    """A token, known or unknown, that must be refused. ``reason`` is for log and audit; clients get one answer."""

    prefix: str
    reason: Reason
    depends: tuple[str, ...]
