"""The values that patgate reasons with, and their vocabularies.

A grant is what one token may do at one epoch of the store. It holds nothing that the decision, the identity
headers or the log do not need, and never a secret: ``digest`` is an HMAC under a key that is not in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from proxy.core.kinds import WORDS, Kind, Reach
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason


class UserStatus(StrEnum):
    """Whether a user's tokens work at all."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REMOVED = "removed"


class TokenStatus(StrEnum):
    """A token's state; ``expired`` is computed from the clock and never stored."""

    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"


class ActorKind(StrEnum):
    """Who did something that is audited, where that was no credential."""

    PERSON = "person"
    SYSTEM = "system"


ACTOR_KINDS: Final = (ActorKind.PERSON.value, *WORDS, ActorKind.SYSTEM.value)
"""All words for the kind of an actor."""


class Access(StrEnum):
    """How a route is open: to tokens, to anyone, with the backend's own login, or never to a token."""

    TOKEN = "token"  # noqa: S105 - the name of a kind of access
    PUBLIC = "public"
    PASSTHROUGH = "passthrough"
    DENIED = "denied"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credential:
    """The token by which somebody acts, as it was when it was verified: a change looks whether it still is.

    ``digest`` is the keyed digest of the value that was presented.
    """

    token_id: str
    prefix: str
    digest: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who does something: ``id`` is stable, ``name`` is for people (an email, a token's name).

    ``user_id`` is whose account it happens in, "" for nobody's. ``address`` and ``request_id`` are those of the request
    that asked for it. Without a ``credential`` the actor is the operator or patgate itself, and nothing is refused to
    it.
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
    """What a token that reaches several organisations may do in one of them; ``role`` is "" where none gives it
    that.
    """

    org_id: str
    org_name: str
    role: str
    permissions: PermissionSet


def by_org(orgs: Iterable[OrgGrant]) -> dict[str, OrgGrant]:
    """Each under its id and under its name, which are never the same (a name has no ``_``)."""
    return {key: org for org in orgs for key in (org.org_id, org.org_name)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What a token may do now. Text fields are "" where there is nothing (the organisation of a personal token).

    ``permissions`` are the role's, now; ``scopes`` narrow them, None narrows nothing. ``orgs`` are the organisations
    that a token of reach ``account`` or ``orgs`` reaches, each under its id and under its name; None for the other
    reaches. ``expires_at`` is in unix seconds. ``digest`` is None until the token was verified once. ``depends`` holds
    the keys of ``proxy.core.dependency_keys`` whose change voids this grant.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedGrant:
    """A token, known or unknown, that must be refused. ``reason`` is for log and audit; clients are told one thing
    only.
    """

    prefix: str
    reason: Reason
    depends: tuple[str, ...]
