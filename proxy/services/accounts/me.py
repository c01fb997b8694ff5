"""The caller's own identity: its user, the token presented, and what its roles and scopes allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.kinds import Reach
from proxy.core.model import Actor, Grant
from proxy.core.permissions import PermissionSet
from proxy.services.caller import load_caller
from proxy.services.views import TokenView, UserView
from proxy.store.change import Rows
from proxy.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class AllowanceView:
    """A role and its present permissions, in an organisation or (``org_id`` "") in the account."""

    org_id: str
    org_name: str
    role: str
    permissions: PermissionSet

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "org_id": self.org_id or None,
            "org": self.org_name or None,
            "role": self.role or None,
            "permissions": list(self.permissions.texts),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MeView:
    """An actor with what it may do. ``scopes`` limit every allowance; ``None`` limits nothing.

    The operator, who may do everything, has no user, no token and no allowances.
    """

    kind: str
    name: str
    user: UserView | None = None
    token: TokenView | None = None
    allowances: tuple[AllowanceView, ...] = ()
    scopes: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "kind": self.kind,
            "name": self.name,
            "user": None if self.user is None else self.user.as_dict(),
            "token": None if self.token is None else self.token.as_dict(),
            "allowed": [allowance.as_dict() for allowance in self.allowances],
            "scopes": None if self.scopes is None else list(self.scopes),
        }


class MeService:
    """Shows callers their own identity and permissions."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def show(self, actor: Actor) -> MeView:
        """The identity and present permissions of ``actor``. Raises Unauthenticated, StoreUnavailable."""
        now = self._clock()
        async with self._store.read() as rows:
            grant = (await load_caller(rows, actor, now)).grant
            if grant is None:
                return MeView(kind=actor.kind.value, name=actor.name)
            entry = await rows.tokens.get(grant.token_id)
            orgs = () if grant.orgs is None else {org.org_id: org for org in grant.orgs.values()}.values()
            allowances = [
                AllowanceView(org_id=org.org_id, org_name=org.org_name, role=org.role, permissions=org.permissions)
                for org in orgs
            ]
            if grant.reach is not Reach.ORGS:
                own = AllowanceView(
                    org_id=grant.org_id, org_name=grant.org_name, role=grant.role, permissions=grant.permissions
                )
                allowances.insert(0, own)
            return MeView(
                kind=actor.kind.value,
                name=actor.name,
                user=await _owner(rows, grant) if grant.user_id else None,
                token=None if entry is None else TokenView.of(entry, now),
                allowances=tuple(allowances),
                scopes=None if grant.scopes is None else grant.scopes.texts,
            )


async def _owner(rows: Rows, grant: Grant) -> UserView | None:
    """The token's owner; for a token of one organisation, without the account and other organisations."""
    user = await rows.users.by_id(grant.user_id)
    if user is None:
        return None
    team = grant.reach is Reach.ORG
    memberships = [one for one in await rows.members.of_user(user.id) if not team or one.org_id == grant.org_id]
    return UserView.of(user, memberships, with_role=not team)
