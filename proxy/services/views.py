"""What services answer with: frozen values, and the same as JSON documents.

``as_dict`` uses snake_case names, RFC 3339 times in UTC with milliseconds, and null for what there is not. A secret is
in ``Created`` and nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

from proxy.core.errors import Invalid
from proxy.core.kinds import Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.services import emails, lookalikes
from proxy.store.records import AttachedRow, Cursor, InvitationRow, MemberRow, OrgRow, RoleRow, TokenEntry, UserRow

T = TypeVar("T")


def rfc3339(at: float | None) -> str | None:
    """A time in unix seconds as RFC 3339 text in UTC, cut to milliseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Remaining:
    """How many items a list has behind a page: ``count`` of them, or where not ``exact`` at least so many."""

    count: int
    exact: bool


NOTHING_MORE: Final = Remaining(count=0, exact=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """Some of a list. ``next_cursor`` asks for the rest; ``None`` at the end. ``remaining`` is there if asked for."""

    items: Sequence[T]
    next_cursor: str | None
    remaining: Remaining | None = None


def person_texts(email: str, name: str) -> dict[str, str]:
    """What others know a person by, as it is read: for warnings of look-alikes."""
    return {"email": emails.readable(email), "name": name}


@dataclass(frozen=True, kw_only=True, slots=True)
class MembershipView:
    org_id: str
    org_name: str
    role: str

    @classmethod
    def of(cls, row: MemberRow) -> MembershipView:
        return cls(org_id=row.org_id, org_name=row.org_name, role=row.role)

    def as_dict(self) -> dict[str, object]:
        return {"org_id": self.org_id, "org": self.org_name, "role": self.role}


@dataclass(frozen=True, kw_only=True, slots=True)
class UserView:
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
        """``with_role`` false: for who may not know the role in the account."""
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
class MemberView:
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
class InvitationView:
    """An open invitation: what the inviter said, and nothing of the person who has that email."""

    id: str
    org_id: str
    org_name: str
    email: str
    role: str
    created_at: float
    expires_at: float

    @classmethod
    def of(cls, row: InvitationRow) -> InvitationView:
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
class OrgView:
    id: str
    name: str
    display_name: str
    status: str
    members: int | None
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, row: OrgRow, members: int | None = None) -> OrgView:
        """``members`` is how many there are, where somebody counted."""
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
    """``source`` is ``config`` where the configuration's definition holds, ``store`` where it was set by command."""

    name: str
    permissions: tuple[str, ...]
    source: str
    created_at: float
    updated_at: float

    @classmethod
    def of(cls, row: RoleRow) -> RoleView:
        from_config = row.config_permissions is not None and list(row.permissions) == list(row.config_permissions)
        return cls(
            name=row.name,
            permissions=tuple(row.permissions),
            source="config" if from_config else "store",
            created_at=row.created_at,
            updated_at=row.updated_at,
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "permissions": list(self.permissions),
            "source": self.source,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Attached:
    """An organisation that an organisation token is attached to, and what it may do there."""

    org_id: str
    org_name: str
    permissions: tuple[str, ...]

    @classmethod
    def of(cls, row: AttachedRow) -> Attached:
        return cls(org_id=row.org_id, org_name=row.org_name, permissions=tuple(row.permissions))

    def as_dict(self) -> dict[str, object]:
        return {"org_id": self.org_id, "org": self.org_name, "permissions": list(self.permissions)}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenView:
    """A token as everybody who may know of it sees it.

    ``scopes`` ``None``: all that the role allows. ``orgs``: what an organisation token is attached to, as far as
    whoever looks may know of it; None for other tokens. ``parent_id``: the token that made it, or its maker where that
    one is gone. ``created_by``: the id of who made it.
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
        """The view at ``now``, on which ``expired`` depends; a token of a removed owner shows as revoked."""
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
class Created:
    """A token with its value, in the one answer that shows it. ``warnings`` are sentences for whoever asked.

    ``replayed``: an earlier request made it, and its answer showed the value, which is None now.
    """

    view: TokenView
    token: str | None = field(repr=False)
    warnings: tuple[str, ...] = ()
    replayed: bool = False

    @property
    def value(self) -> str:
        """The value, in the answer that shows it. Raises RuntimeError in a replay."""
        if self.token is None:
            raise RuntimeError("the value was shown by an earlier answer")
        return self.token

    def as_dict(self) -> dict[str, object]:
        return {**self.view.as_dict(), "token": self.token, "warnings": list(self.warnings)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A token after a change to it, or as it last was. ``warnings`` are sentences for whoever asked."""

    view: TokenView
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return {**self.view.as_dict(), "warnings": list(self.warnings)}


def write_cursor(created_at: float, row_id: str) -> str:
    """A cursor that asks for what follows the row with this time and id."""
    return base64.urlsafe_b64encode(json.dumps([created_at, row_id]).encode()).rstrip(b"=").decode("ascii")


def cursor_behind(last: Cursor | None) -> str | None:
    """A cursor that asks for what follows ``last``; none where nothing does."""
    return None if last is None else write_cursor(last.created_at, last.id)


def read_cursor(text: str | None) -> Cursor | None:
    """The inverse of ``write_cursor``. Raises Invalid for what it did not write."""
    if text is None:
        return None
    try:
        created_at, row_id = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise Invalid("cursor", "this is not a cursor of this list") from None
    if type(created_at) is not float or not math.isfinite(created_at) or type(row_id) is not str:
        raise Invalid("cursor", "this is not a cursor of this list")
    return Cursor(created_at=created_at, id=row_id)


LIMIT_DEFAULT = 100
LIMIT_MOST = 1000


def check_limit(limit: int) -> int:
    """The page size itself. Raises Invalid outside 1 to 1000."""
    if not 1 <= limit <= LIMIT_MOST:
        raise Invalid("limit", f"a page has 1 to {LIMIT_MOST} rows")
    return limit
