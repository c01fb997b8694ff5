"""Whose a token is, who may know of it, what each may do with it, and what one token may make of another.

Rules:

1. Pure: decided on rows that the caller read in its transaction, and on the standing of who asks.
2. What one may not know of is ``HIDDEN``, whatever was asked; what one may know of but not do is refused in words.
3. A personal access token manages its owner's tokens within its reach, without any role: all of them where it has no
   scopes of its own; itself and those that it made where it has, and the others as far as its scopes say.
4. An administrator sees tokens by the permission to do so, and ends those of others by that permission and the policy
   together. Only the owner gives a token another value, other scopes or another name: whoever gave it a value would
   have it.
5. A key belongs to its organisation, or to every one that it is attached to: whoever changes it needs the permission
   in each of them, whoever looks at it in one.
6. A key changes nothing.
7. Contained: the same owner, a reach within the reach, scopes covered by the scopes, an end not later than the end.
   Who names no scopes, or no end, asks for all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from proxy.core.errors import FieldError, Forbidden, NotFound
from proxy.core.kinds import KINDS, OF_USERS, Kind, Reach
from proxy.core.model import Grant
from proxy.services.caller import AccountEntity, AccountOperation, Caller
from proxy.services.policy.model import AdminRight
from proxy.store.records import TokenRow
from proxy.store.tokens.queries import Within

NO_TOKEN: Final = "there is no token with this id or prefix"  # noqa: S105 - a sentence


class Verb(StrEnum):
    """What is done with a token that there is."""

    SHOW = "show"
    UPDATE = "update"
    ROTATE = "rotate"
    REGENERATE = "regenerate"
    SCOPES = "scopes"
    REVOKE = "revoke"
    DELETE = "delete"


class Ruling(StrEnum):
    """The answer to whether somebody may do something with a token, and why not."""

    ALLOWED = "allowed"
    HIDDEN = "hidden"
    KEY = "an API key or an organisation token changes nothing"
    SCOPES = "the scopes of the token presented do not allow this"
    OWNER_ONLY = "only the owner of a token may do this"
    POLICY = "the policy does not let administrators do this to the tokens of others"
    PERMISSION = "this needs a permission that you do not have in every organisation of it"


_OPERATIONS: Final[Mapping[Verb, AccountOperation]] = {
    Verb.SHOW: AccountOperation.READ,
    Verb.UPDATE: AccountOperation.UPDATE,
    Verb.ROTATE: AccountOperation.UPDATE,
    Verb.REGENERATE: AccountOperation.UPDATE,
    Verb.SCOPES: AccountOperation.UPDATE,
    Verb.REVOKE: AccountOperation.UPDATE,
    Verb.DELETE: AccountOperation.DELETE,
}
_RIGHTS: Final[Mapping[Verb, AdminRight]] = {Verb.REVOKE: AdminRight.REVOKE, Verb.DELETE: AdminRight.DELETE}
_LOOKS: Final = (AccountOperation.READ, AccountOperation.LIST)


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A token that somebody asks about.

    ``org_ids``: its one organisation, those that it is attached to, or none. ``made``: the token presented made it,
    directly or through others.
    """

    row: TokenRow
    org_ids: tuple[str, ...]
    made: bool

    @property
    def entity(self) -> AccountEntity:
        return AccountEntity(KINDS[self.row.kind].entity)

    @property
    def places(self) -> tuple[str, ...]:
        """Where a role would allow something about it: in its organisations, or in the account ("")."""
        return self.org_ids or ("",)


def judge(asker: Caller, target: Target, verb: Verb, rights: Collection[AdminRight]) -> Ruling:
    """Whether ``asker`` may do this with the token; ``rights`` are what the policy gives administrators there."""
    grant = asker.grant
    if grant is None:
        return Ruling.ALLOWED
    own = owns(grant, target.row)
    if own and (not asker.scoped or target.made or target.row.id == grant.token_id):
        return Ruling.ALLOWED
    operation = _OPERATIONS[verb]
    if own and asker.scopes_allow(AccountEntity.TOKENS, operation):
        return Ruling.ALLOWED
    seen = any(asker.may(target.entity, look, place) for look in _LOOKS for place in target.places)
    seen = seen or (own and any(asker.scopes_allow(AccountEntity.TOKENS, look) for look in _LOOKS))
    if not seen:
        return Ruling.HIDDEN
    if verb is Verb.SHOW:
        return Ruling.ALLOWED
    if not KINDS[grant.kind].may_manage:
        return Ruling.KEY
    if own:
        return Ruling.SCOPES
    permitted = all(asker.may(target.entity, operation, place) for place in target.places)
    if target.entity is AccountEntity.KEYS:
        return Ruling.ALLOWED if permitted else Ruling.PERMISSION
    if verb not in _RIGHTS:
        return Ruling.OWNER_ONLY
    if _RIGHTS[verb] not in rights:
        return Ruling.POLICY
    return Ruling.ALLOWED if permitted else Ruling.PERMISSION


def require(ruling: Ruling) -> None:
    """Raises NotFound for what is hidden, in the words for what there is not, and Forbidden for what is refused."""
    if ruling is Ruling.HIDDEN:
        raise NotFound(NO_TOKEN)
    if ruling is not Ruling.ALLOWED:
        raise Forbidden(ruling.value)


def owns(grant: Grant, row: TokenRow) -> bool:
    """Whether the token with this grant is the owner's, and this one is among those that it reaches."""
    if grant.kind not in OF_USERS or row.kind not in OF_USERS or not grant.user_id or row.user_id != grant.user_id:
        return False
    return reaches(grant, row.reach, row.org_id)


def reaches(grant: Grant, reach: Reach, org_id: str | None) -> bool:
    """Whether a token's reach is within that of the token with this grant, of the same owner."""
    if grant.reach is Reach.ACCOUNT:
        return reach in (Reach.ACCOUNT, Reach.PERSONAL, Reach.ORG)
    if grant.reach is Reach.ORG:
        return reach is Reach.ORG and org_id == grant.org_id
    return grant.reach is Reach.PERSONAL and reach is Reach.PERSONAL


def uncontained(
    grant: Grant, *, reach: Reach, org_id: str | None, expires_at: float | None, scopes: Iterable[str] | None
) -> list[FieldError]:
    """Why a personal access token like this would not be contained in the one with this grant; nothing if it is."""
    found: list[FieldError] = []
    if not reaches(grant, reach, org_id):
        field = "org" if grant.reach is Reach.ORG else "reach"
        found.append((field, "the token presented does not reach as far as this"))
    return [*found, *longer(grant, expires_at), *wider(grant, scopes)]


def longer(grant: Grant, expires_at: float | None) -> list[FieldError]:
    """Why this end would be later than that of the token with this grant."""
    if grant.expires_at is None or (expires_at is not None and expires_at <= grant.expires_at):
        return []
    return [("expires", "the token presented ends before this would")]


def wider(grant: Grant, scopes: Iterable[str] | None) -> list[FieldError]:
    """Why these scopes would allow more than those of the token with this grant."""
    if grant.scopes is None:
        return []
    if scopes is None:
        return [("scopes", "name scopes: the token presented has scopes of its own")]
    return [
        (f"scopes[{position}]", "the scopes of the token presented do not cover this")
        for position, text in enumerate(scopes)
        if not grant.scopes.covering(text)
    ]


def sight(asker: Caller, operation: AccountOperation = AccountOperation.LIST) -> tuple[Within, ...]:
    """What somebody may list, or do this to as far as permissions say: tokens within any of these."""
    grant = asker.grant
    if grant is None:
        return (Within(),)
    found = [*_own(asker, grant, operation)] if grant.kind in OF_USERS else []
    for place in ("", *sorted(asker.org_ids)):
        kinds = [kind for kind, row in KINDS.items() if asker.may(AccountEntity(row.entity), operation, place)]
        org_id = place or None
        if len(kinds) == len(Kind):
            found.append(Within(org_id=org_id))
        else:
            found.extend(Within(org_id=org_id, kind=kind) for kind in kinds)
    if Within() in found:
        return (Within(),)
    return tuple(found)


def _own(asker: Caller, grant: Grant, operation: AccountOperation) -> Iterable[Within]:
    if asker.scoped and not asker.scopes_allow(AccountEntity.TOKENS, operation):
        yield Within(user_id=grant.user_id, lineage=grant.token_id)
    elif grant.reach is Reach.ORG:
        yield Within(user_id=grant.user_id, org_id=grant.org_id)
    elif grant.reach is Reach.PERSONAL:
        yield Within(user_id=grant.user_id, reach=Reach.PERSONAL)
    else:
        yield Within(user_id=grant.user_id)


def narrowed(sights: Iterable[Within], wanted: Within) -> tuple[Within, ...]:
    """What of each is wanted as well. A lineage that is wanted must be within those that are in sight."""
    found = []
    for one in sights:
        fields = {}
        for name in Within.__slots__:
            mine, asked = getattr(one, name), getattr(wanted, name)
            if mine is not None and asked is not None and mine != asked and name != "lineage":
                break
            fields[name] = mine if asked is None else asked
        else:
            found.append(Within(**fields))
    return tuple(dict.fromkeys(found))
