"""Resolves the effective policy, sets an organisation's own, and lists or expires active tokens that violate it.

Rules:

1. The deployment's policy comes from the configuration. An organisation's own is stored with it and only restricts.
2. The policies of the organisations that a token belongs to apply to it: its one organisation, or all that it is
   attached to. An account-wide token belongs to none, so no organisation can end it or prevent its creation; it does
   not reach an organisation whose policy it violates (``grants``).
3. A query about one organisation judges only by its policy and the deployment's. Ending a token that is attached to
   other organisations too needs the permission to set the policy in all of them.
4. A token is expired only if it violates the policy in the transaction that expires it, with an event for each token.
   The token presented is expired last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from proxy.core.dependency_keys import org_key
from proxy.core.errors import Invalid
from proxy.core.kinds import Reach
from proxy.core.model import Actor
from proxy.services import identifiers, lookup, paging, token_events
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.paging import FIRST_PAGE, NOTHING_MORE, Page, PageRequest, Remaining, read_cursor, write_cursor
from proxy.services.policy.model import AdminRight, TokenPolicy, lifetime
from proxy.services.validation import Fields
from proxy.services.views import rfc3339, token_summary
from proxy.store.change import Rows
from proxy.store.records import Cursor, OrgRow
from proxy.store.store import Store
from proxy.store.tokens.active import ActiveToken

BECAUSE_POLICY: Final = "policy"
BECAUSE_INACTIVE: Final = "inactive"
_INACTIVE: Final = ("inactive_after",)
_AT_ONCE: Final = 500
"""Tokens that one transaction ends, or one snapshot reads, so that other changes do not wait long."""
_OVER_LIMIT_MOST: Final = 100
_COUNTED_MOST: Final = 100_000
"""Tokens that a count reads at most; the result is then a lower bound."""
_SHORTEST: Final = 60.0
_LONGEST: Final = 1e10


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyView:
    """The ``effective`` policy, the deployment's, and the ``own`` policy of an organisation, if one was requested.

    After a change: how many active tokens of the organisation violate it (``breaking``), how many were expired
    (``expired``), and warnings for the caller.
    """

    effective: TokenPolicy
    deployment: TokenPolicy
    own: Mapping[str, object] | None = None
    org_name: str | None = None
    breaking: int | None = None
    expired: int | None = None
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
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
    """An active token, with the names of the policy rules that it violates."""

    token: ActiveToken
    rules: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            **token_summary(self.token),
            "expires_at": rfc3339(self.token.expires_at),
            "last_used_at": rfc3339(self.token.last_used_at),
            "breaks": list(self.rules),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class UserOverLimit:
    """A user with more active tokens than the policy allows. People have to choose which of them to end."""

    user_id: str
    email: str
    tokens: int

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {"user_id": self.user_id, "user": self.email, "tokens": self.tokens}


class PolicyService:
    """Reads, sets and enforces policies. ``org`` arguments are a name or an id; all methods raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float], deployment: TokenPolicy) -> None:
        self._store = store
        self._clock = clock
        self.deployment: Final = deployment

    async def effective(self, rows: Rows, *org_ids: str | None) -> TokenPolicy:
        """The effective policy for a token of these organisations, or of none, in the transaction of ``rows``."""
        policy = self.deployment
        for org_id in org_ids:
            row = await rows.orgs.by_id(org_id) if org_id else None
            if row is not None and row.policy:
                policy = policy.stricter(TokenPolicy.of_org(row.policy))
        return policy

    async def unreachable_orgs(
        self, rows: Rows, user_id: str, *, lifetime: float | None, scopes: Sequence[str] | None
    ) -> tuple[str, ...]:
        """A warning for each of the user's organisations whose policy such an account-wide token violates.

        The token has this lifetime and these scopes, and does not reach those organisations.
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
        """The effective policy and its sources. Raises NotFound (org), Unauthenticated."""
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, self._clock())
            if org is None:
                return PolicyView(effective=self.deployment, deployment=self.deployment)
            return self._view(await lookup.visible_org(rows, caller, org))

    async def set(self, actor: Actor, org: str, own: Mapping[str, object], *, expire: bool = False) -> PolicyView:
        """Replace an organisation's own policy; with {} only the deployment's applies.

        ``own`` has fields of ``TokenPolicy``, as its ``as_dict`` writes them. Tokens that violate the new policy keep
        working and are counted; with ``expire`` they are expired. Raises Invalid with every error, NotFound, Forbidden,
        Unauthenticated.
        """
        return await self._set(actor, org, _checked(own), None, expire=expire)

    async def update(self, actor: Actor, org: str, given: Mapping[str, object], *, expire: bool = False) -> PolicyView:
        """Change the given fields of an organisation's own policy; a field that is None is removed. Raises as ``set``.

        The others are kept as they are in the transaction of the change, so nobody else's change is lost.
        """
        return await self._set(actor, org, _checked(given), frozenset(given), expire=expire)

    async def _set(
        self, actor: Actor, org: str, own: Mapping[str, object], given: frozenset[str] | None, *, expire: bool
    ) -> PolicyView:
        """Replace the ``given`` fields, or with None the whole policy, by ``own``."""
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            row = await lookup.visible_org(change, caller, org)
            caller.require(AccountEntity.POLICY, AccountOperation.UPDATE, row.id)
            before = dict(row.policy or {})
            kept = {} if given is None else {name: value for name, value in before.items() if name not in given}
            checked = {**kept, **own}
            if before != checked:
                await change.orgs.set_policy(row.id, checked, change.now)
                change.touched(org_key(row.id))
                details = {"policy": checked, "before": before}
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
        return replace(view, breaking=breaking, expired=expired, warnings=_warnings(breaking, all_of_them))

    async def violations(
        self, actor: Actor, org: str | None = None, page: PageRequest = FIRST_PAGE
    ) -> Page[PolicyViolation]:
        """Active tokens that violate the present policy, oldest first.

        A page searches a bounded number of tokens, so it may be empty and still have a next one. Raises NotFound,
        Forbidden, Invalid, Unauthenticated.
        """
        now = self._clock()
        async with self._store.read() as rows:
            org_id = await self._authorized_org(rows, actor, org, AccountOperation.LIST)
            page.check()
            looked_at = max(page.limit, _AT_ONCE)
            found, last = await self._violations_page(rows, read_cursor(page.cursor), looked_at, now, org_id)
        if len(found) > page.limit:
            found = found[: page.limit]
            last = Cursor(created_at=found[-1].token.created_at, id=found[-1].token.id)
        left = NOTHING_MORE if page.count else None
        if page.count and last is not None:
            most = _COUNTED_MOST if actor.credential is None else paging.COUNT_MOST
            breaking, all_of_them = await self._count(org_id, last, most)
            left = Remaining(count=breaking, exact=all_of_them)
        return Page(items=found, next_cursor=write_cursor(last), remaining=left)

    async def crowded(self, actor: Actor) -> list[UserOverLimit]:
        """At most a hundred users with more active tokens than ``tokens_per_user``.

        Raises Forbidden, Unauthenticated.
        """
        async with self._store.read() as rows:
            await self._authorized_org(rows, actor, None, AccountOperation.LIST)
            most = self.deployment.tokens_per_user
            found = [] if most is None else await rows.active_tokens.owners_above(most, self._clock(), _OVER_LIMIT_MOST)
        return [UserOverLimit(user_id=user_id, email=email, tokens=tokens) for user_id, email, tokens in found]

    async def expire(self, actor: Actor, org: str | None = None) -> int:
        """Expire every active token that violates the present policy; returns their number.

        They can be regenerated within the policy. Raises NotFound, Forbidden, Unauthenticated.
        """
        return await self._end_all(actor, org)

    async def end_inactive(self, actor: Actor, after: str | None, most: int) -> tuple[int, str | None]:
        """Of the next ``most`` tokens after the cursor ``after``, expire those that have been unused for too long.

        Returns their number and the cursor to continue from: ``None`` after the last token, and if no policy limits
        inactivity.
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
        return ended, write_cursor(cursor)

    async def count_breaking(self, after: str | None, most: int) -> tuple[int, str | None]:
        """Count those of the next ``most`` tokens after the cursor that violate more than the limit on inactivity.

        Returns their number and the cursor to continue from, as ``end_inactive`` does.
        """
        count, looked = 0, 0
        cursor = read_cursor(after)
        while looked < most:
            found, cursor = await self._look(cursor, None)
            count, looked = count + sum(violation.rules != _INACTIVE for violation in found), looked + _AT_ONCE
            if cursor is None:
                return count, None
        return count, write_cursor(cursor)

    async def _count(
        self, org_id: str | None, cursor: Cursor | None = None, most: int = _COUNTED_MOST
    ) -> tuple[int, bool]:
        """Count those of the next ``most`` active tokens after a cursor that violate the policy.

        The tokens are those of one organisation, or all. Returns the number, and whether the last token was reached.
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
            org_id = await self._authorized_org(rows, actor, org, AccountOperation.UPDATE)
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
            return await self._violations_page(rows, after, _AT_ONCE, self._clock(), org_id, rules)

    async def _end_some(
        self, actor: Actor, found: Sequence[PolicyViolation], org_id: str | None, rules: tuple[str, ...] | None = None
    ) -> int:
        """Expire those that still violate the policy and that ``actor`` may expire; returns their number."""
        if not found:
            return 0
        async with self._store.change(actor, self._clock()) as change:
            caller = await self._caller(change, actor, org_id, AccountOperation.UPDATE)
            living = await change.active_tokens.by_ids([violation.token.id for violation in found], change.now)
            broken = await self._violating(change, living, change.now, org_id, rules)
            ended = [one for one in broken if caller.operator or _may_end(caller, one.token)]
            await change.active_tokens.expire([violation.token.id for violation in ended], change.now)
            for violation in ended:
                because = BECAUSE_POLICY if rules is None else BECAUSE_INACTIVE
                details = {"because": because, "breaks": list(violation.rules)}
                token_events.record(change, "expire", violation.token, violation.token.org_ids, details)
        return len(ended)

    async def _authorized_org(
        self, rows: Rows, actor: Actor, org: str | None, operation: AccountOperation
    ) -> str | None:
        """The id of the organisation, if one is named. Raises Forbidden if the actor may not do this there."""
        caller = await load_caller(rows, actor, self._clock())
        row = None if org is None else await lookup.visible_org(rows, caller, org)
        caller.require(AccountEntity.POLICY, operation, "" if row is None else row.id)
        return None if row is None else row.id

    async def _caller(self, rows: Rows, actor: Actor, org_id: str | None, operation: AccountOperation) -> Caller:
        caller = await load_caller(rows, actor, self._clock())
        caller.require(AccountEntity.POLICY, operation, org_id or "")
        return caller

    async def _violations_page(
        self,
        rows: Rows,
        after: Cursor | None,
        limit: int,
        now: float,
        org_id: str | None,
        rules: tuple[str, ...] | None = None,
    ) -> tuple[list[PolicyViolation], Cursor | None]:
        page, last = await rows.active_tokens.page(after=after, limit=limit, now=now, org_id=org_id)
        return await self._violating(rows, page, now, org_id, rules), last

    async def _violating(
        self, rows: Rows, tokens: Sequence[ActiveToken], now: float, org_id: str | None, rules: tuple[str, ...] | None
    ) -> list[PolicyViolation]:
        """The tokens that violate a rule of their policy; with ``rules``, one of those."""
        policies: dict[tuple[str, ...], TokenPolicy] = {}
        found = []
        for token in tokens:
            org_ids = token.org_ids if org_id is None else (org_id,)
            if org_ids not in policies:
                policies[org_ids] = await self.effective(rows, *org_ids)
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
        # Its permissions in each organisation are named; scopes can only restrict them.
        given = (text for one in token.attached if one.org_id in org_ids for text in one.permissions)
        scopes = [*(scopes or ()), *given]
    return policy.broken(
        lifetime=lifetime(created_at=token.created_at, rotated_at=token.rotated_at, expires_at=token.expires_at),
        scopes=scopes,
        unused=now - max(begun, token.last_used_at or 0.0),
    )


def _may_end(caller: Caller, token: ActiveToken) -> bool:
    return all(caller.may(AccountEntity.POLICY, AccountOperation.UPDATE, org_id) for org_id in token.org_ids)


def _warnings(breaking: int, all_of_them: bool) -> tuple[str, ...]:
    """The warning about tokens that violate a policy which was just set."""
    if not breaking:
        return ()
    count = f"{breaking}" if all_of_them else f"at least {breaking}"
    tokens, verbs = ("token", "breaks it and keeps") if breaking == 1 else ("tokens", "break it and keep")
    return (f"{count} active {tokens} of the organisation {verbs} working until ended",)


def _checked(own: Mapping[str, object]) -> dict[str, object]:
    """The given fields in their stored form. Raises Invalid with every error."""
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
