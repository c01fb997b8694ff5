"""Rows as values. Field names are column names; times are unix seconds; ``None`` is SQL null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus, UserStatus

LEVEL_ACCOUNT: Final = "account"
LEVEL_ORGANISATION: Final = "organisation"
"""Whose audit log an event is on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserRow:
    """A user; ``email_key`` is the folded email that lookups compare."""

    id: str
    email: str
    email_key: str
    name: str
    role: str
    status: UserStatus
    created_at: float
    updated_at: float
    issuer: str | None = None
    subject: str | None = None
    external_id: str | None = None
    removed_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OrgRow:
    """An organisation; ``policy`` is its own, ``None`` without one."""

    id: str
    name: str
    display_name: str
    status: str
    created_at: float
    updated_at: float
    policy: Mapping[str, object] | None = None
    external_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberRow:
    """A membership: a user's role in an organisation."""

    org_id: str
    user_id: str
    role: str
    created_at: float
    updated_at: float
    org_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class InvitationRow:
    """``token_id`` is the token that invited; ``None`` for the operator."""

    id: str
    org_id: str
    email: str
    email_key: str
    role: str
    token_id: str | None
    created_at: float
    expires_at: float
    org_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleRow:
    """A role; ``config_permissions`` are those that the configuration last applied, if it names the role."""

    name: str
    permissions: Sequence[str]
    config_permissions: Sequence[str] | None
    created_at: float
    updated_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """A personal access token or key, with its hashes; ``parent_id`` is the token that minted it."""

    id: str
    prefix: str
    kind: Kind
    reach: Reach
    name: str
    description: str
    user_id: str | None
    org_id: str | None
    role: str | None
    scopes: Sequence[str] | None
    status: TokenStatus
    hash: str = field(repr=False)
    digest: bytes | None = field(repr=False)
    created_by_kind: str
    created_by: str
    created_at: float
    updated_at: float
    previous_hash: str | None = field(default=None, repr=False)
    previous_digest: bytes | None = field(default=None, repr=False)
    previous_until: float | None = None
    parent_id: str | None = None
    rotated_at: float | None = None
    expires_at: float | None = None
    lifetime: float | None = None
    revoked_at: float | None = None
    notified_days: int | None = None
    ip_ranges: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttachedRow:
    """An organisation that a token is attached to, and the token's permissions there."""

    token_id: str
    org_id: str
    org_name: str
    permissions: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEntry:
    """A token for display: its row with its owner's email, its organisation's name and its usage."""

    token: TokenRow
    email: str
    user_status: UserStatus | None
    org_name: str
    last_used_at: float | None
    use_count: int
    last_used_ip: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantRows:
    """Everything that decides about some tokens, by id, from one snapshot. ``as_of`` is its epoch."""

    as_of: int
    tokens: Mapping[str, TokenGrantRow]
    history: str = ""
    """Which history of changes ``as_of`` belongs to (``feed.Head``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenGrantRow:
    """One token joined with its owner, organisation, membership and the role that counts; without its hash.

    ``user_status``, ``org_status`` and ``member_role`` are ``None`` if there is no such row. ``role`` is the role that
    counts now, ``permissions`` those of that role; ``None`` if it does not exist. ``orgs`` are the organisations that a
    token of reach ``account`` or ``orgs`` reaches, in no order, regardless of their status.
    """

    id: str
    prefix: str
    kind: Kind
    reach: Reach
    name: str
    user_id: str | None
    org_id: str | None
    scopes: Sequence[str] | None
    status: TokenStatus
    digest: bytes | None = field(repr=False)
    expires_at: float | None
    email: str | None
    user_status: UserStatus | None
    org_name: str | None
    org_status: str | None
    member_role: str | None
    role: str | None
    permissions: Sequence[str] | None
    orgs: tuple[OrgGrantRow, ...] = ()
    created_at: float = 0.0
    rotated_at: float | None = None
    ip_ranges: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OrgGrantRow:
    """An organisation that a token reaches: through its owner's membership, or because it is attached to it.

    ``role`` is the membership's, ``None`` for an attached token. ``permissions`` are those of that role (``None`` if it
    does not exist), or those that the token was attached with. ``policy`` is the organisation's own.
    """

    org_id: str
    org_name: str
    status: str
    role: str | None
    permissions: Sequence[str] | None
    policy: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """The keys touched after some epoch, up to ``epoch``.

    ``complete`` is false if they cannot be listed (too many, pruned, or the reader is ahead): drop the whole cache.
    """

    epoch: int
    keys: tuple[str, ...]
    complete: bool
    history: str = ""
    """Which history of changes they belong to (``feed.Head``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """The last row of a page: lists are ordered by time, then id, so a page is stable while rows are added."""

    created_at: float
    id: str
