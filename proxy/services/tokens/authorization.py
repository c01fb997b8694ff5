"""Authorization on tokens: decides whether a caller may see or change a token, and what a token it creates may do.

Rules:

1. The functions are pure: they decide on rows that the service read in its transaction, and on the ``Caller``.
2. A token that the caller may not see is ``HIDDEN``, regardless of the operation; one that it may see but not change is
   refused with an explanation.
3. A personal access token manages its owner's tokens within its reach, and needs no role for that. Without scopes it
   manages all of them; with scopes, itself and the tokens that it created, and the others as its scopes permit.
4. An administrator sees tokens by a permission, and revokes or deletes those of others only if both the permission and
   the policy allow it. Only the owner gives a token another value, other scopes or another name, because the caller
   that sets a value gets to know it.
5. A key belongs to its organisation, or to every one that it is attached to. Changing it needs the permission in each
   of them, reading it in one.
6. A key changes nothing.
7. A token is contained in another if the owner is the same, its reach is within the other's reach, the other's scopes
   cover its scopes, the other's IP ranges include its IP ranges, and it does not expire later. A missing list of scopes
   means all, missing IP ranges mean any address, and a missing expiry means never.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from proxy.core.errors import FieldError, Forbidden, NotFound
from proxy.core.kinds import KINDS, OF_ORGS, OF_USERS, Kind, Reach
from proxy.core.model import Grant
from proxy.core.networks import AddressRanges
from proxy.services.caller import AccountEntity, AccountOperation, Caller
from proxy.services.policy.model import AdminRight
from proxy.store.records import TokenRow
from proxy.store.tokens.queries import Within

NO_TOKEN: Final = "there is no token with this id or prefix"  # noqa: S105 - a sentence


class Verb(StrEnum):
    """An operation on an existing token."""

    SHOW = "show"
    UPDATE = "update"
    ROTATE = "rotate"
    REGENERATE = "regenerate"
    SCOPES = "scopes"
    REVOKE = "revoke"
    DELETE = "delete"


class Ruling(StrEnum):
    """The decision whether a caller may do something with a token; a refusal has its message as value."""

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
    """The token that an operation is about.

    ``org_ids``: its one organisation, those that it is attached to, or none. ``made``: the token presented created it,
    directly or through others.
    """

    row: TokenRow
    org_ids: tuple[str, ...]
    made: bool

    @property
    def entity(self) -> AccountEntity:
        """The entity that permissions on this token name."""
        return AccountEntity(KINDS[self.row.kind].entity)

    @property
    def places(self) -> tuple[str, ...]:
        """The ids of the organisations whose roles apply to the token; "" (the account) if it has none."""
        return self.org_ids or ("",)


def judge(caller: Caller, target: Target, verb: Verb, rights: Collection[AdminRight]) -> Ruling:
    """Whether the caller may do this with the token; ``rights`` are those of administrators by the policy there."""
    grant = caller.grant
    if grant is None:
        return Ruling.ALLOWED
    own = owns(grant, target.row)
    if own and (not caller.scoped or target.made or target.row.id == grant.token_id):
        return Ruling.ALLOWED
    operation = _OPERATIONS[verb]
    if own and caller.scopes_allow(AccountEntity.TOKENS, operation):
        return Ruling.ALLOWED
    seen = any(caller.may(target.entity, look, place) for look in _LOOKS for place in target.places)
    seen = seen or (own and any(caller.scopes_allow(AccountEntity.TOKENS, look) for look in _LOOKS))
    if not seen:
        return Ruling.HIDDEN
    if verb is Verb.SHOW:
        return Ruling.ALLOWED
    if not KINDS[grant.kind].may_manage:
        return Ruling.KEY
    if own:
        return Ruling.SCOPES
    permitted = all(caller.may(target.entity, operation, place) for place in target.places)
    if target.row.kind in OF_ORGS:
        return Ruling.ALLOWED if permitted else Ruling.PERMISSION
    if verb not in _RIGHTS:
        return Ruling.OWNER_ONLY
    if _RIGHTS[verb] not in rights:
        return Ruling.POLICY
    return Ruling.ALLOWED if permitted else Ruling.PERMISSION


def require(ruling: Ruling) -> None:
    """Raise NotFound for ``HIDDEN``, with the message for an unknown token, and Forbidden for other refusals."""
    if ruling is Ruling.HIDDEN:
        raise NotFound(NO_TOKEN)
    if ruling is not Ruling.ALLOWED:
        raise Forbidden(ruling.value)


def owns(grant: Grant, row: TokenRow) -> bool:
    """Whether both are personal access tokens of the same owner, and this one is within the reach of the grant."""
    if grant.kind not in OF_USERS or row.kind not in OF_USERS or not grant.user_id or row.user_id != grant.user_id:
        return False
    return reaches(grant, row.reach, row.org_id)


def reaches(grant: Grant, reach: Reach, org_id: str | None) -> bool:
    """Whether a reach is within the reach of this grant; both tokens have the same owner."""
    if grant.reach is Reach.ACCOUNT:
        return reach in (Reach.ACCOUNT, Reach.PERSONAL, Reach.ORG)
    if grant.reach is Reach.ORG:
        return reach is Reach.ORG and org_id == grant.org_id
    return grant.reach is Reach.PERSONAL and reach is Reach.PERSONAL


def containment_errors(
    grant: Grant,
    *,
    reach: Reach,
    org_id: str | None,
    expires_at: float | None,
    scopes: Iterable[str] | None,
    ranges: Sequence[str] | None,
) -> list[FieldError]:
    """The reasons for which such a personal access token is not contained in this grant (rule 7); empty if it is."""
    found: list[FieldError] = []
    if not reaches(grant, reach, org_id):
        field = "org" if grant.reach is Reach.ORG else "reach"
        found.append((field, "the token presented does not reach as far as this"))
    return [*found, *expiry_errors(grant, expires_at), *scope_errors(grant, scopes), *range_errors(grant, ranges)]


def range_errors(grant: Grant, ranges: Sequence[str] | None) -> list[FieldError]:
    """The errors for IP ranges that this grant's do not include; empty if they include all."""
    if grant.ranges is None:
        return []
    if ranges is None:
        return [("ip_ranges", "name IP ranges: the token presented has some of its own")]
    return [
        (f"ip_ranges[{position}]", "the IP ranges of the token presented do not include this")
        for position, covered in enumerate(grant.ranges.cover(ranges))
        if not covered
    ]


def expiry_errors(grant: Grant, expires_at: float | None) -> list[FieldError]:
    """The error for an expiry that is later than that of this grant; empty if it is not later."""
    if grant.expires_at is None or (expires_at is not None and expires_at <= grant.expires_at):
        return []
    return [("expires", "the token presented ends before this would")]


def scope_errors(grant: Grant, scopes: Iterable[str] | None) -> list[FieldError]:
    """The errors for scopes that this grant's scopes do not cover; empty if they cover all."""
    if grant.scopes is None:
        return []
    if scopes is None:
        return [("scopes", "name scopes: the token presented has scopes of its own")]
    return [
        (f"scopes[{position}]", "the scopes of the token presented do not cover this")
        for position, text in enumerate(scopes)
        if not grant.scopes.covering(text)
    ]


def widens(before: Sequence[str] | None, after: Sequence[str] | None) -> bool:
    """Whether these new IP ranges include an address that the old ones do not."""
    if before is None:
        return False
    return after is None or not all(AddressRanges.of(before).cover(after))


def visible_tokens(caller: Caller, operation: AccountOperation = AccountOperation.LIST) -> tuple[Within, ...]:
    """The sets of tokens on which the caller may do this, by its permissions: tokens within any of them."""
    grant = caller.grant
    if grant is None:
        return (Within(),)
    found = [*_own(caller, grant, operation)] if grant.kind in OF_USERS else []
    for place in ("", *sorted(caller.org_ids)):
        kinds = [kind for kind, row in KINDS.items() if caller.may(AccountEntity(row.entity), operation, place)]
        org_id = place or None
        if len(kinds) == len(Kind):
            found.append(Within(org_id=org_id))
        else:
            found.extend(Within(org_id=org_id, kind=kind) for kind in kinds)
    if Within() in found:
        return (Within(),)
    return tuple(found)


def _own(caller: Caller, grant: Grant, operation: AccountOperation) -> Iterable[Within]:
    if caller.scoped and not caller.scopes_allow(AccountEntity.TOKENS, operation):
        yield Within(user_id=grant.user_id, lineage=grant.token_id)
    elif grant.reach is Reach.ORG:
        yield Within(user_id=grant.user_id, org_id=grant.org_id)
    elif grant.reach is Reach.PERSONAL:
        yield Within(user_id=grant.user_id, reach=Reach.PERSONAL)
    else:
        yield Within(user_id=grant.user_id)


def intersection(visible: Iterable[Within], wanted: Within) -> tuple[Within, ...]:
    """Each of ``visible`` restricted to ``wanted``. The lineage of ``wanted`` must be within those of ``visible``."""
    found = []
    for one in visible:
        fields = {}
        for name in Within.__slots__:
            mine, other = getattr(one, name), getattr(wanted, name)
            if mine is not None and other is not None and mine != other and name != "lineage":
                break
            fields[name] = mine if other is None else other
        else:
            found.append(Within(**fields))
    return tuple(dict.fromkeys(found))
