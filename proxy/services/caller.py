"""The authenticated caller and its permissions, loaded inside the transaction that uses them.

Rules:

1. An actor without a credential is the operator, or patgate itself: it may do everything.
2. The credential is read again in this transaction. If it was revoked, replaced or narrowed after the request arrived,
   the request is refused or limited accordingly. One with IP ranges is refused to an actor from any other address.
3. An operation is allowed if a role allows it now and the token's scopes do. The role in the account applies
   everywhere, the role in an organisation applies in that organisation; permissions of two roles are never combined.
4. A key, of one organisation or of several, may read and list where its role permits, and changes nothing.
5. A caller may only grant (a role, permissions, a token) what it may do itself: by one role, and by the scopes.
6. Patgate's own resources have entity names of their own (``patgate.tokens``), so that a permission on a backend's
   ``tokens`` or ``users`` does not include them. ``*`` includes both.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from proxy.core.errors import Forbidden, Unauthenticated
from proxy.core.kinds import KINDS, Kind, Reach
from proxy.core.model import Actor, Grant, RefusedGrant
from proxy.core.permissions import PermissionSet
from proxy.services import grants
from proxy.store.change import Rows


class AccountEntity(StrEnum):
    """Patgate's own entities, as permissions name them."""

    TOKENS = KINDS[Kind.PAT].entity
    KEYS = KINDS[Kind.KEY].entity
    USERS = "patgate.users"
    MEMBERS = "patgate.members"
    ORGS = "patgate.orgs"
    ROLES = "patgate.roles"
    POLICY = "patgate.policy"
    AUDIT = "patgate.audit"
    ROUTES = "patgate.routes"
    NODES = "patgate.nodes"


class AccountOperation(StrEnum):
    """The operations on these entities, as permissions name them."""

    CREATE = "create"
    READ = "read"
    LIST = "list"
    UPDATE = "update"
    DELETE = "delete"


_READS: Final = frozenset({AccountOperation.READ, AccountOperation.LIST})


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """An actor with its permissions. ``grant`` is that of its credential, None for the operator."""

    actor: Actor
    grant: Grant | None

    @property
    def operator(self) -> bool:
        """Whether the caller is the operator, or patgate itself, which may do everything."""
        return self.grant is None

    @property
    def user_id(self) -> str:
        """The id of the token's owner; "" for the operator and for keys."""
        return "" if self.grant is None else self.grant.user_id

    @property
    def scoped(self) -> bool:
        """Whether the credential has scopes."""
        return self.grant is not None and self.grant.scopes is not None

    def scopes_allow(self, entity: AccountEntity, operation: AccountOperation) -> bool:
        """Whether the credential's scopes, if any, allow this: enough for the caller's own tokens and account."""
        grant = self.grant
        if grant is None or grant.scopes is None:
            return True
        return grant.scopes.allows(entity.value, None, operation.value)

    def require_scope(self, entity: AccountEntity, operation: AccountOperation) -> None:
        """Raise Forbidden unless ``scopes_allow``: for what people do for themselves, without any role."""
        if not self.scopes_allow(entity, operation):
            permission = f"{entity.value}:{operation.value}"
            raise Forbidden(f"this needs the scope {permission}", permission=permission)

    def may(self, entity: AccountEntity, operation: AccountOperation, org_id: str = "") -> bool:
        """Whether a role (in the account, or in the organisation with this id) and the scopes allow this."""
        grant = self.grant
        if grant is None:
            return True
        if not KINDS[grant.kind].may_manage and operation not in _READS:
            return False
        allowed = any(role.allows(entity.value, None, operation.value) for role in self._roles(org_id))
        return allowed and self.scopes_allow(entity, operation)

    def require(self, entity: AccountEntity, operation: AccountOperation, org_id: str = "") -> None:
        """Raise Forbidden unless ``may``; only for targets that the caller may see anyway."""
        if not self.may(entity, operation, org_id):
            permission = f"{entity.value}:{operation.value}"
            raise Forbidden(f"this needs the permission {permission}", permission=permission)

    def may_give(self, permissions: PermissionSet, org_id: str = "") -> bool:
        """Whether the caller may grant ``permissions`` (in the account, or in that organisation).

        One role must cover all of them, and so must the scopes.
        """
        grant = self.grant
        if grant is None:
            return True
        if grant.scopes is not None and not grant.scopes.covers(permissions):
            return False
        return any(role.covers(permissions) for role in self._roles(org_id))

    @property
    def org_ids(self) -> frozenset[str]:
        """The ids of the organisations that the credential reaches without a role in the account."""
        grant = self.grant
        if grant is None:
            return frozenset()
        if grant.orgs is not None:
            return frozenset(org.org_id for org in grant.orgs.values())
        return frozenset({grant.org_id} - {""})

    def reaches_org(self, org_id: str) -> bool:
        """Whether the credential reaches this organisation without a role in the account."""
        return self.grant is None or org_id in self.org_ids

    def _roles(self, org_id: str) -> Iterator[PermissionSet]:
        grant = self.grant
        if grant is None:
            return
        if grant.reach in (Reach.PERSONAL, Reach.ACCOUNT):
            yield grant.permissions
        if org_id and grant.reach is Reach.ORG and grant.org_id == org_id:
            yield grant.permissions
        elif org_id and grant.orgs is not None and org_id in grant.orgs:
            yield grant.orgs[org_id].permissions


async def load_caller(rows: Rows, actor: Actor, now: float) -> Caller:
    """The caller, with its permissions as of the transaction of ``rows`` (``now`` in unix seconds).

    Raises Unauthenticated if its credential was ended or replaced after the request was authenticated, and Forbidden if
    its IP ranges do not include the actor's address.
    """
    credential = actor.credential
    if credential is None:
        return Caller(actor=actor, grant=None)
    row = (await rows.grant_rows([credential.token_id])).tokens.get(credential.token_id)
    verdict = grants.verdict(credential.prefix, credential.token_id, row, now)
    if isinstance(verdict, RefusedGrant) or not _same(verdict.digest, credential.digest):
        raise Unauthenticated("the token presented is not valid here")
    if verdict.ranges is not None and not verdict.ranges.contain(actor.address):
        raise Forbidden("the token presented may not be used from this address")
    return Caller(actor=actor, grant=verdict)


def _same(stored: bytes | None, verified: bytes) -> bool:
    return stored is not None and hmac.compare_digest(stored, verified)
