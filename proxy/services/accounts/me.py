"""Who asks, as patgate sees it now: the owner, the token presented, and what role and scopes allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.kinds import Reach
from proxy.core.model import Actor, Grant
from proxy.core.permissions import PermissionSet
from proxy.services.caller import standing
from proxy.services.views import TokenView, UserView
from proxy.store.change import Rows
from proxy.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class AllowanceView:
    """A role, and what it permits now: in the account (``org_id`` "") or in an organisation."""

    org_id: str
    org_name: str
    role: str
    permissions: PermissionSet

    def as_dict(self) -> dict[str, object]:
        return {
            "org_id": self.org_id or None,
            "org": self.org_name or None,
            "role": self.role or None,
            "permissions": list(self.permissions.texts),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MeView:
    """``kind`` is that of the actor. ``scopes`` narrow every allowance; ``None`` narrows nothing.

    The operator, who may do everything, has neither user nor token nor allowances.
    """

    kind: str
    name: str
    user: UserView | None = None
    token: TokenView | None = None
    allowances: tuple[AllowanceView, ...] = ()
    scopes: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "name": self.name,
            "user": None if self.user is None else self.user.as_dict(),
            "token": None if self.token is None else self.token.as_dict(),
            "allowed": [allowance.as_dict() for allowance in self.allowances],
            "scopes": None if self.scopes is None else list(self.scopes),
        }


class MeService:
    """The one verb about oneself."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def show(self, actor: Actor) -> MeView:
        """Who ``actor`` is and what it may do now. Raises Unauthenticated, StoreUnavailable."""
        now = self._clock()
        async with self._store.read() as rows:
            grant = (await standing(rows, actor, now)).grant
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
    """The owner; to a token of one organisation, nothing of theirs in the account and elsewhere."""
    user = await rows.users.by_id(grant.user_id)
    if user is None:
        return None
    team = grant.reach is Reach.ORG
    memberships = [one for one in await rows.members.of_user(user.id) if not team or one.org_id == grant.org_id]
    return UserView.of(user, memberships, with_role=not team)
