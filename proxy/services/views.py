"""Views: the frozen values that services return, and their JSON documents.

``as_dict`` uses snake_case names, RFC 3339 times in UTC with milliseconds, and null for absent values. Only ``Created``
contains a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from proxy.core.kinds import Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.services import emails, lookalikes
from proxy.store.records import AttachedRow, InvitationRow, MemberRow, OrgRow, RoleRow, TokenEntry, UserRow

if TYPE_CHECKING:
    # Commands use this module and do not load the store.
    from proxy.store.tokens.active import ActiveToken
    from proxy.store.tokens.expiring import ExpiringToken


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayable:
    """What a creating verb returns. ``replayed``: an earlier request with the same ``Idempotency-Key`` created it."""

    replayed: bool = field(default=False, compare=False)

    def as_replay(self) -> Self:
        """The same view, marked as a replay."""
        return replace(self, replayed=True)


def rfc3339(at: float | None) -> str | None:
    """A time in unix seconds as RFC 3339 text in UTC, cut to milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def person_texts(email: str, name: str) -> dict[str, str]:
    """The email and name of a person as others read them, for the warnings about look-alike letters."""
    return {"email": emails.readable(email), "name": name}


@dataclass(frozen=True, kw_only=True, slots=True)
class MembershipView:
    """An organisation that a user is a member of, and the role there."""

    org_id: str
    org_name: str
    role: str

    @classmethod
    def of(cls, row: MemberRow) -> MembershipView:
        """The view of this row."""
        return cls(org_id=row.org_id, org_name=row.org_name, role=row.role)

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {"org_id": self.org_id, "org": self.org_name, "role": self.role}


@dataclass(frozen=True, kw_only=True, slots=True)
class UserView(Replayable):
    """A user, as far as the caller may see it. ``role`` is "" for a user without a role in the account."""

    id: str
    email: str
    name: str
    role: str
    status: UserStatus
    memberships: tuple[MembershipView, ...]
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, row: UserRow, members: Sequence[MemberRow], *, with_role: bool = True) -> UserView:
        """The view of this row; without ``with_role`` for a caller who may not see the role in the account."""
        return cls(
            id=row.id,
            email=row.email,
            name=row.name,
            role=row.role if with_role else "",
            status=row.status,
            memberships=tuple(MembershipView.of(member) for member in members if member.user_id == row.id),
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "id": self.id,
            "email": self.email,
            "name": self.name,
            "role": self.role or None,
            "status": self.status.value,
            "memberships": [membership.as_dict() for membership in self.memberships],
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
            "warnings": list(lookalikes.warnings(person_texts(self.email, self.name))),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberView(Replayable):
    """A user as a member of one organisation: ``role`` is the role there."""

    user_id: str
    email: str
    name: str
    role: str
    status: UserStatus
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, member: MemberRow, user: UserRow) -> MemberView:
        """The view of this row."""
        return cls(
            user_id=user.id,
            email=user.email,
            name=user.name,
            role=member.role,
            status=user.status,
            created_at=member.created_at,
            updated_at=member.updated_at,
        )

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "user_id": self.user_id,
            "email": self.email,
            "name": self.name,
            "role": self.role,
            "status": self.status.value,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
            "warnings": list(lookalikes.warnings(person_texts(self.email, self.name))),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class InvitationView(Replayable):
    """An open invitation: the inviter's input, and no data of the user with that email."""

    id: str
    org_id: str
    org_name: str
    email: str
    role: str
    created_at: float
    expires_at: float

    @classmethod
    def of(cls, row: InvitationRow) -> InvitationView:
        """The view of this row."""
        return cls(
            id=row.id,
            org_id=row.org_id,
            org_name=row.org_name,
            email=row.email,
            role=row.role,
            created_at=row.created_at,
            expires_at=row.expires_at,
        )

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "id": self.id,
            "org_id": self.org_id,
            "org": self.org_name,
            "email": self.email,
            "role": self.role,
            "created_at": rfc3339(self.created_at),
            "expires_at": rfc3339(self.expires_at),
            "warnings": list(lookalikes.warnings(person_texts(self.email, ""))),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class OrgView(Replayable):
    """An organisation. ``members`` is the number of its members, None in lists."""

    id: str
    name: str
    display_name: str
    status: str
    members: int | None
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, row: OrgRow, members: int | None = None) -> OrgView:
        """The view of this row; ``members`` is the number of members, if it was counted."""
        return cls(
            id=row.id,
            name=row.name,
            display_name=row.display_name,
            status=row.status,
            members=members,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        document: dict[str, object] = {
            "id": self.id,
            "name": self.name,
            "display_name": self.display_name,
            "status": self.status,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
            "warnings": list(lookalikes.warnings({"display_name": self.display_name})),
        }
        if self.members is not None:
            document["members"] = self.members
        return document


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleView:
    """A role. ``source`` is ``config`` if the configuration set its permissions, ``store`` if a command did."""

    name: str
    permissions: tuple[str, ...]
    source: str
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, row: RoleRow) -> RoleView:
        """The view of this row."""
        from_config = row.config_permissions is not None and list(row.permissions) == list(row.config_permissions)
        return cls(
            name=row.name,
            permissions=tuple(row.permissions),
            source="config" if from_config else "store",
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "name": self.name,
            "permissions": list(self.permissions),
            "source": self.source,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Attached:
    """An organisation that an organisation token is attached to, and its permissions there."""

    org_id: str
    org_name: str
    permissions: tuple[str, ...]

    @classmethod
    def of(cls, row: AttachedRow) -> Attached:
        """The view of this row."""
        return cls(org_id=row.org_id, org_name=row.org_name, permissions=tuple(row.permissions))

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {"org_id": self.org_id, "org": self.org_name, "permissions": list(self.permissions)}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenView:
    """A token, without its value.

    ``scopes`` ``None``: everything that the role allows. ``ip_ranges`` ``None``: from any address. ``orgs``: the
    organisations that an organisation token is attached to and that the caller may see; None for other tokens.
    ``parent_id``: the token that created it, or the nearest ancestor that still exists. ``created_by``: the id of the
    actor who created it.
    """

    id: str
    prefix: str
    kind: str
    reach: str
    name: str
    description: str
    user_id: str | None
    email: str | None
    org_id: str | None
    org_name: str | None
    role: str | None
    orgs: tuple[Attached, ...] | None
    scopes: tuple[str, ...] | None
    ip_ranges: tuple[str, ...] | None
    status: TokenStatus
    parent_id: str | None
    created_by_kind: str
    created_by: str
    created_at: float
    updated_at: float
    rotated_at: float | None
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    last_used_ip: str | None
    use_count: int

    @classmethod
    def of(cls, entry: TokenEntry, now: float, attached: Iterable[AttachedRow] = ()) -> TokenView:
        """The view at ``now`` (unix seconds). A token whose owner was removed shows as revoked."""
        row = entry.token
        status = row.status
        if entry.user_status is UserStatus.REMOVED:
            status = TokenStatus.REVOKED
        elif status is TokenStatus.ACTIVE and row.expires_at is not None and row.expires_at <= now:
            status = TokenStatus.EXPIRED
        return cls(
            id=row.id,
            prefix=row.prefix,
            kind=row.kind.value,
            reach=row.reach.value,
            name=row.name,
            description=row.description,
            user_id=row.user_id,
            email=entry.email or None,
            org_id=row.org_id,
            org_name=entry.org_name or None,
            role=row.role,
            orgs=tuple(map(Attached.of, attached)) if row.reach is Reach.ORGS else None,
            scopes=None if row.scopes is None else tuple(row.scopes),
            ip_ranges=None if row.ip_ranges is None else tuple(row.ip_ranges),
            status=status,
            parent_id=row.parent_id,
            created_by_kind=row.created_by_kind,
            created_by=row.created_by,
            created_at=row.created_at,
            updated_at=row.updated_at,
            rotated_at=row.rotated_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=entry.last_used_at,
            last_used_ip=entry.last_used_ip,
            use_count=entry.use_count,
        )

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "id": self.id,
            "prefix": self.prefix,
            "kind": self.kind,
            "reach": self.reach,
            "name": self.name,
            "description": self.description,
            "user_id": self.user_id,
            "user": self.email,
            "org_id": self.org_id,
            "org": self.org_name,
            "role": self.role,
            "orgs": None if self.orgs is None else [one.as_dict() for one in self.orgs],
            "scopes": None if self.scopes is None else list(self.scopes),
            "ip_ranges": None if self.ip_ranges is None else list(self.ip_ranges),
            "status": self.status.value,
            "parent_id": self.parent_id,
            "created_by_kind": self.created_by_kind,
            "created_by": self.created_by,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
            "rotated_at": rfc3339(self.rotated_at),
            "expires_at": rfc3339(self.expires_at),
            "revoked_at": rfc3339(self.revoked_at),
            "last_used_at": rfc3339(self.last_used_at),
            "last_used_ip": self.last_used_ip,
            "use_count": self.use_count,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Created(Replayable):
    """A token with its value (``token``), shown only once. ``warnings`` are sentences for the caller.

    In a replay ``token`` is None: the earlier answer showed the value.
    """

    view: TokenView
    token: str | None = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """The token's value. Raises RuntimeError in a replay."""
        if self.token is None:
            raise RuntimeError("the value was shown by an earlier answer")
        return self.token

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {**self.view.as_dict(), "token": self.token, "warnings": list(self.warnings)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A token after a change, or as it was before its deletion. ``warnings`` are sentences for the caller."""

    view: TokenView
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {**self.view.as_dict(), "warnings": list(self.warnings)}


def token_summary(token: ActiveToken | ExpiringToken) -> dict[str, object]:
    """What lists about tokens say of each: which one it is, and whose."""
    return {
        "id": token.id,
        "prefix": token.prefix,
        "kind": token.kind.value,
        "name": token.name,
        "user_id": token.user_id,
        "user": token.email or None,
        "org_id": token.org_id,
    }
