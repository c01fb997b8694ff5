"""Policies as verbs: looked at, set for an organisation, held against the tokens that there are.

Rules:

1. The deployment's policy is the configuration's and changes with it. An organisation's own is stored with it, and only
   narrows.
2. A living token keeps to the policies of the organisations that it belongs to: its own, or all that it is attached to.
   An account-wide token belongs to none: no organisation can end it or keep somebody from making it. It does not reach
   an organisation whose policy it breaks (``grants``).
3. Where one organisation is asked about, only its policy and the deployment's are told of. A token that is attached to
   others as well is ended there by whoever may set the policies of all of them.
4. What ends is what breaks the policy in the very transaction that ends it, each token with its event; the token that
   asks ends last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from proxy.core.dependency_keys import org_key, token_key
from proxy.core.errors import Invalid
from proxy.core.kinds import Reach
from proxy.core.model import Actor
from proxy.services import counting, identifiers, lookup
from proxy.services.caller import AccountEntity, AccountOperation, Caller, standing
from proxy.services.policy.model import AdminRight, TokenPolicy, lifetime
from proxy.services.validation import Fields
from proxy.services.views import (
    LIMIT_DEFAULT,
    NOTHING_MORE,
    Page,
    Remaining,
    check_limit,
    cursor_behind,
    read_cursor,
    rfc3339,
    write_cursor,
)
from proxy.store.change import Change, Rows
from proxy.store.records import Cursor, OrgRow
from proxy.store.store import Store
from proxy.store.tokens.active import ActiveToken

BECAUSE_POLICY: Final = "policy"
BECAUSE_INACTIVE: Final = "inactive"
_INACTIVE: Final = ("inactive_after",)
_AT_ONCE: Final = 500
"""Tokens that one transaction ends, or one snapshot looks at: nobody else's change waits long for it."""
_CROWDED: Final = 100
_LOOKED_AT: Final = 100_000
"""Tokens that are looked at to count in an answer: of more, it says that there are at least so many."""
_SHORTEST: Final = 60.0
_LONGEST: Final = 1e10


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyView:
    """What counts (``effective``), what the deployment says, and what the organisation says itself, if one was asked
    about. After it was set: how many living tokens of the organisation break it (``breaking``), how many were ended
    (``expired``), and sentences for whoever asked.
    """

    effective: TokenPolicy
    deployment: TokenPolicy
    own: Mapping[str, object] | None = None
    org_name: str | None = None
    breaking: int | None = None
    expired: int | None = None
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return {
            "org": self.org_name,
            "effective": self.effective.as_dict(),
            "deployment": self.deployment.as_dict(),
            "own": None if self.own is None else dict(self.own),
            "breaking": self.breaking,
            "expired": self.expired,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyViolation:
    """A living token that breaks rules of its policy, which are named."""

    token: ActiveToken
    rules: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        token = self.token
        return {
            "id": token.id,
            "prefix": token.prefix,
            "kind": token.kind.value,
            "name": token.name,
            "user_id": token.user_id,
            "user": token.email or None,
            "org_id": token.org_id,
            "expires_at": rfc3339(token.expires_at),
            "last_used_at": rfc3339(token.last_used_at),
            "breaks": list(self.rules),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Crowded:
    """A user with more living tokens than the policy allows; which of them to end is for people to say."""

    user_id: str
    email: str
    tokens: int

    def as_dict(self) -> dict[str, object]:
        return {"user_id": self.user_id, "user": self.email, "tokens": self.tokens}


class PolicyService:
    """The verbs of policies. ``org`` arguments are a name or an id; all raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float], deployment: TokenPolicy) -> None:
        self._store = store
        self._clock = clock
        self.deployment: Final = deployment

    async def of(self, rows: Rows, *org_ids: str | None) -> TokenPolicy:
        """What counts for a token of these organisations, or of none, as the transaction of ``rows`` has it."""
        policy = self.deployment
        for org_id in org_ids:
            row = await rows.orgs.by_id(org_id) if org_id else None
            if row is not None and row.policy:
                policy = policy.stricter(TokenPolicy.of_org(row.policy))
        return policy

    async def kept_out(
        self, rows: Rows, user_id: str, *, lifetime: float | None, scopes: Sequence[str] | None
    ) -> tuple[str, ...]:
        """A sentence for each organisation of a user that an account-wide token of this lifetime and these scopes does
        not reach, because it breaks the policy there.
        """
        found = []
        for member in await rows.members.of_user(user_id):
            row = await rows.orgs.by_id(member.org_id)
            if row is not None and row.policy:
                rules = TokenPolicy.of_org(row.policy).broken(lifetime=lifetime, scopes=scopes)
                if rules:
                    found.append(f"it does not reach {row.name}, whose policy it breaks: {', '.join(rules)}")
        return tuple(found)

    async def show(self, actor: Actor, org: str | None = None) -> PolicyView:
        """What counts, and where it comes from. Raises NotFound (org), Unauthenticated."""
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            if org is None:
                return PolicyView(effective=self.deployment, deployment=self.deployment)
            return self._view(await lookup.visible_org(rows, asker, org))

    async def set(self, actor: Actor, org: str, own: Mapping[str, object], *, expire: bool = False) -> PolicyView:
        """Give an organisation this policy of its own, instead of the one before; {} leaves the deployment's alone.

        ``own`` has fields of ``Policy``, as ``Policy.as_dict`` writes them. Tokens that break it now go on, and are
        counted; with ``expire`` they are ended. Raises Invalid with all that is wrong, NotFound, Forbidden,
        Unauthenticated.
        """
        checked = _checked(own)
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            row = await lookup.visible_org(change, asker, org)
            asker.require(AccountEntity.POLICY, AccountOperation.UPDATE, row.id)
            if dict(row.policy or {}) != checked:
                await change.orgs.set_policy(row.id, checked, change.now)
                change.touched(org_key(row.id))
                details = {"policy": checked, "before": dict(row.policy or {})}
                change.audit(
                    "account.policy.set",
                    target_kind="org",
                    target_id=row.id,
                    target_name=row.name,
                    org_id=row.id,
                    details=details,
                )
            view = self._view(await lookup.org(change, row.id))
        expired = await self._end_all(actor, row.id) if expire else None
        breaking, all_of_them = await self._count(row.id)
        return replace(view, breaking=breaking, expired=expired, warnings=_told(breaking, all_of_them))

    async def violations(
        self,
        actor: Actor,
        org: str | None = None,
        *,
        limit: int = LIMIT_DEFAULT,
        cursor: str | None = None,
        count: bool = False,
    ) -> Page[PolicyViolation]:
        """Living tokens that break the policy of now, oldest first: at most ``limit`` of those among the next so many
        living tokens; with ``count``, how many more there are.

        A page may be empty and still have a next one. Raises NotFound, Forbidden, Invalid, Unauthenticated.
        """
        now = self._clock()
        async with self._store.read() as rows:
            org_id = await self._judged(rows, actor, org, AccountOperation.LIST)
            looked_at = max(check_limit(limit), _AT_ONCE)
            page, last = await self._broken(rows, read_cursor(cursor), looked_at, now, org_id)
        if len(page) > limit:
            page = page[:limit]
            last = Cursor(created_at=page[-1].token.created_at, id=page[-1].token.id)
        left = NOTHING_MORE if count else None
        if count and last is not None:
            most = _LOOKED_AT if actor.credential is None else counting.COUNT_MOST
            breaking, all_of_them = await self._count(org_id, last, most)
            left = Remaining(count=breaking, exact=all_of_them)
        return Page(items=page, next_cursor=cursor_behind(last), remaining=left)

    async def crowded(self, actor: Actor) -> list[Crowded]:
        """Users with more living tokens than ``tokens_per_user``, a hundred at most. Raises Forbidden,
        Unauthenticated.
        """
        async with self._store.read() as rows:
            await self._judged(rows, actor, None, AccountOperation.LIST)
            most = self.deployment.tokens_per_user
            found = [] if most is None else await rows.active_tokens.owners_above(most, self._clock(), _CROWDED)
        return [Crowded(user_id=user_id, email=email, tokens=tokens) for user_id, email, tokens in found]

    async def expire(self, actor: Actor, org: str | None = None) -> int:
        """End every living token that breaks the policy of now; how many there were.

        They can be regenerated by what the policy allows. Raises NotFound, Forbidden, Unauthenticated.
        """
        return await self._end_all(actor, org)

    async def end_inactive(self, actor: Actor, after: str | None, most: int) -> tuple[int, str | None]:
        """Of the next ``most`` tokens behind the cursor ``after``, end those that nobody has used for too long.

        How many those were, and the cursor to go on behind; ``None`` after the last token, and where no policy ends
        what is not used.
        """
        async with self._store.read() as rows:
            policies = (self.deployment, *map(TokenPolicy.of_org, await rows.orgs.policies()))
        if all(policy.inactive_after is None for policy in policies):
            return 0, None
        ended, looked = 0, 0
        cursor = read_cursor(after)
        while looked < most:
            found, cursor = await self._look(cursor, None, _INACTIVE)
            ended, looked = ended + await self._end_some(actor, found, None, _INACTIVE), looked + _AT_ONCE
            if cursor is None:
                return ended, None
        return ended, None if cursor is None else write_cursor(cursor.created_at, cursor.id)

    async def count_breaking(self, after: str | None, most: int) -> tuple[int, str | None]:
        """How many of the next ``most`` tokens behind the cursor ``after`` break the policy, by more than being unused;
        and the cursor to go on behind, as with ``end_inactive``.
        """
        count, looked = 0, 0
        cursor = read_cursor(after)
        while looked < most:
            found, cursor = await self._look(cursor, None)
            count, looked = count + sum(violation.rules != _INACTIVE for violation in found), looked + _AT_ONCE
            if cursor is None:
                return count, None
        return count, None if cursor is None else write_cursor(cursor.created_at, cursor.id)

    async def _count(
        self, org_id: str | None, cursor: Cursor | None = None, most: int = _LOOKED_AT
    ) -> tuple[int, bool]:
        """How many of the next ``most`` living tokens behind a cursor, of one organisation or all, break the policy;
        and whether those are all.
        """
        count = 0
        for _ in range(0, most, _AT_ONCE):
            found, cursor = await self._look(cursor, org_id)
            count += len(found)
            if cursor is None:
                return count, True
        return count, False

    async def _end_all(self, actor: Actor, org: str | None) -> int:
        async with self._store.read() as rows:
            org_id = await self._judged(rows, actor, org, AccountOperation.UPDATE)
        own = "" if actor.credential is None else actor.credential.token_id
        ended, cursor = 0, None
        last: tuple[PolicyViolation, ...] = ()
        while True:
            found, cursor = await self._look(cursor, org_id)
            last = (*last, *(violation for violation in found if violation.token.id == own))
            others = [violation for violation in found if violation.token.id != own]
            ended += await self._end_some(actor, others, org_id)
            if cursor is None:
                return ended + await self._end_some(actor, last, org_id)

    async def _look(
        self, after: Cursor | None, org_id: str | None, rules: tuple[str, ...] | None = None
    ) -> tuple[list[PolicyViolation], Cursor | None]:
        async with self._store.read() as rows:
            return await self._broken(rows, after, _AT_ONCE, self._clock(), org_id, rules)

    async def _end_some(
        self, actor: Actor, found: Sequence[PolicyViolation], org_id: str | None, rules: tuple[str, ...] | None = None
    ) -> int:
        """End what of these breaks the policy still, and may be ended by ``actor``; how many there were."""
        if not found:
            return 0
        async with self._store.change(actor, self._clock()) as change:
            asker = await self._asker(change, actor, org_id, AccountOperation.UPDATE)
            living = await change.active_tokens.by_ids([violation.token.id for violation in found], change.now)
            broken = await self._held(change, living, change.now, org_id, rules)
            ended = [one for one in broken if asker.operator or _may_end(asker, one.token)]
            await change.active_tokens.expire([violation.token.id for violation in ended], change.now)
            for violation in ended:
                _record(change, violation, BECAUSE_POLICY if rules is None else BECAUSE_INACTIVE)
        return len(ended)

    async def _judged(self, rows: Rows, actor: Actor, org: str | None, operation: AccountOperation) -> str | None:
        """The organisation's id, if one was named; the actor may do this there."""
        asker = await standing(rows, actor, self._clock())
        row = None if org is None else await lookup.visible_org(rows, asker, org)
        asker.require(AccountEntity.POLICY, operation, "" if row is None else row.id)
        return None if row is None else row.id

    async def _asker(self, rows: Rows, actor: Actor, org_id: str | None, operation: AccountOperation) -> Caller:
        asker = await standing(rows, actor, self._clock())
        asker.require(AccountEntity.POLICY, operation, org_id or "")
        return asker

    async def _broken(
        self,
        rows: Rows,
        after: Cursor | None,
        limit: int,
        now: float,
        org_id: str | None,
        rules: tuple[str, ...] | None = None,
    ) -> tuple[list[PolicyViolation], Cursor | None]:
        page, last = await rows.active_tokens.page(after=after, limit=limit, now=now, org_id=org_id)
        return await self._held(rows, page, now, org_id, rules), last

    async def _held(
        self, rows: Rows, tokens: Sequence[ActiveToken], now: float, org_id: str | None, rules: tuple[str, ...] | None
    ) -> list[PolicyViolation]:
        """Those of these that break a rule (one of ``rules``, where given) of what counts for them."""
        policies: dict[tuple[str, ...], TokenPolicy] = {}
        found = []
        for token in tokens:
            org_ids = token.org_ids if org_id is None else (org_id,)
            if org_ids not in policies:
                policies[org_ids] = await self.of(rows, *org_ids)
            broken = _rules(policies[org_ids], token, org_ids, now)
            broken = broken if rules is None else tuple(rule for rule in broken if rule in rules)
            if broken:
                found.append(PolicyViolation(token=token, rules=broken))
        return found

    def _view(self, row: OrgRow) -> PolicyView:
        return PolicyView(
            effective=self.deployment.stricter(TokenPolicy.of_org(row.policy)),
            deployment=self.deployment,
            own=dict(row.policy or {}),
            org_name=row.name,
        )


def _rules(policy: TokenPolicy, token: ActiveToken, org_ids: tuple[str, ...], now: float) -> tuple[str, ...]:
    begun = token.created_at if token.rotated_at is None else token.rotated_at
    scopes = token.scopes
    if token.reach is Reach.ORGS:
        # It has permissions by name in each organisation, and is narrowed by scopes at most.
        given = (text for one in token.attached if one.org_id in org_ids for text in one.permissions)
        scopes = [*(scopes or ()), *given]
    return policy.broken(
        lifetime=lifetime(created_at=token.created_at, rotated_at=token.rotated_at, expires_at=token.expires_at),
        scopes=scopes,
        unused=now - max(begun, token.last_used_at or 0.0),
    )


def _may_end(asker: Caller, token: ActiveToken) -> bool:
    return all(asker.may(AccountEntity.POLICY, AccountOperation.UPDATE, org_id) for org_id in token.org_ids)


def _told(breaking: int, all_of_them: bool) -> tuple[str, ...]:
    """The sentence about tokens that break a policy which was just set."""
    if not breaking:
        return ()
    count = f"{breaking}" if all_of_them else f"at least {breaking}"
    tokens, go = ("token", "breaks it and goes") if breaking == 1 else ("tokens", "break it and go")
    return (f"{count} living {tokens} of the organisation {go} on until ended",)


def _record(change: Change, violation: PolicyViolation, because: str) -> None:
    """The key and the events of a token that ended: one on the log of each organisation that it belongs to."""
    token = violation.token
    change.touched(token_key(token.id))
    for org_id in token.org_ids or ("",):
        change.audit(
            f"account.{token.kind.value}.expire",
            target_kind="token",
            target_id=token.id,
            target_name=token.name,
            org_id=org_id,
            user_id=token.user_id or "",
            details={"prefix": token.prefix, "because": because, "breaks": list(violation.rules)},
        )


def _checked(own: Mapping[str, object]) -> dict[str, object]:
    """The fields that were given, fit to be stored. Raises Invalid with every fault."""
    fields = Fields()
    checked: dict[str, object] = {}
    for name, value in own.items():
        check = _CHECKS.get(name)
        if check is None:
            fields.fault("policy", "a policy has the fields " + ", ".join(_CHECKS))
        elif value is not None:
            checked[name] = fields.check(partial(check, name, value))
    fields.done()
    return checked


def _duration(name: str, value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and _SHORTEST <= value <= _LONGEST:
        return float(value)
    raise Invalid(name, f"a number of seconds, at least {_SHORTEST:g}")


def _number(name: str, value: object) -> object:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000_000:
        raise Invalid(name, "a whole number, at least 1")
    return value


def _switch(name: str, value: object) -> object:
    if not isinstance(value, bool):
        raise Invalid(name, "true or false")
    return value


def _permissions(name: str, value: object) -> object:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise Invalid(name, "a list of permissions")
    return identifiers.permission_texts(value, name)


def _rights(name: str, value: object) -> object:
    if not isinstance(value, list | tuple) or not all(text in tuple(AdminRight) for text in value):
        raise Invalid(name, f"a list of some of {', '.join(AdminRight)}")
    return sorted(set(value))


_CHECKS: Final[Mapping[str, Callable[[str, object], object]]] = {
    "max_lifetime": _duration,
    "require_expiry": _switch,
    "tokens_per_user": _number,
    "org_tokens_per_org": _number,
    "inactive_after": _duration,
    "require_scopes": _switch,
    "forbidden_scopes": _permissions,
    "admin_rights": _rights,
}
