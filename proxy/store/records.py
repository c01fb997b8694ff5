"""Rows as values. Field names are column names; times are unix seconds; ``None`` is SQL's null."""

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
    name: str
    permissions: Sequence[str]
    config_permissions: Sequence[str] | None
    created_at: float
    updated_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class AttachedRow:
    """One organisation of a token, and what it may do there."""

    token_id: str
    org_id: str
    org_name: str
    permissions: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEntry:
    """A token as lists show it: its row beside the names of what it refers to."""

    token: TokenRow
    email: str
    user_status: UserStatus | None
    org_name: str
    last_used_at: float | None
    use_count: int
    last_used_ip: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GrantRows:
    """All that decides about some tokens, by their ids, as one snapshot shows it. ``as_of`` is its epoch."""

    as_of: int
    tokens: Mapping[str, TokenGrantRow]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenGrantRow:
    """One token joined with its owner, organisation, membership and the role that counts; without its hash.

    ``user_status``, ``org_status`` and ``member_role`` are ``None`` where there is no such row. ``role`` is the role
    that counts now, ``permissions`` what the role of that name holds; ``None`` where there is no such role. ``orgs``
    are those that a token of reach ``account`` or ``orgs`` reaches, in no order, whatever their status.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class OrgGrantRow:
    """One of the organisations that a token reaches: through its owner's membership, or because it is attached to it.

    ``role`` is the membership's, ``None`` for an attached token. ``permissions`` are what that role holds (``None``
    where there is no such role), or those that the token was attached with. ``policy`` is the organisation's own.
    """

    org_id: str
    org_name: str
    status: str
    role: str | None
    permissions: Sequence[str] | None
    policy: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What changed after some epoch.

    ``complete`` is false when that cannot be said (too much, pruned, or the asker is ahead): forget everything instead.
    """

    epoch: int
    keys: tuple[str, ...]
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """The last row of a page: lists are ordered by creation, then id, so a page is stable while rows are added."""

    created_at: float
    id: str
