"""Policies as verbs: looked at, set for an organisation, held against the tokens that there are.

The deployment's policy is the configuration's and changes with it. An organisation's own is stored with it, and only
narrows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from proxy.core.depends import org_key, token_key
from proxy.core.errors import Invalid
from proxy.core.model import Actor, Kind, Reach
from proxy.services import lookup
from proxy.services.access import Entity, Operation, Standing, standing
from proxy.services.fields import Fields
from proxy.services.policy import AdminRight, Policy
from proxy.services.roles import permission_texts
from proxy.services.views import LIMIT_DEFAULT, Page, check_limit, read_cursor, rfc3339, write_cursor
from proxy.store.change import Change, Rows
from proxy.store.living import LivingToken
from proxy.store.records import Cursor, OrgRow
from proxy.store.store import Store

BECAUSE_POLICY: Final = "policy"
BECAUSE_INACTIVE: Final = "inactive"
_AT_ONCE: Final = 500
"""Tokens that one transaction ends, or one snapshot looks at: nobody else's change waits long for it."""
_CROWDED: Final = 100
_SHORTEST: Final = 60.0
_LONGEST: Final = 1e10


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyView:
    """What counts (``effective``), what the deployment says, and what the organisation says itself, if one was asked
    about.
    """

    effective: Policy
    deployment: Policy
    own: Mapping[str, object] | None = None
    org_name: str | None = None

    def as_dict(self) -> dict[str, object]:
        return {
            "org": self.org_name,
            "effective": self.effective.as_dict(),
            "deployment": self.deployment.as_dict(),
            "own": None if self.own is None else dict(self.own),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """A living token that breaks rules of its policy, which are named."""

    token: LivingToken
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


class Policies:
    """The verbs of policies. ``org`` arguments are a name or an id; all raise StoreUnavailable."""

    def __init__(self, store: Store, clock: Callable[[], float], deployment: Policy) -> None:
        self._store = store
        self._clock = clock
        self.deployment: Final = deployment

    async def of(self, rows: Rows, *org_ids: str | None) -> Policy:
        """What counts for a token of these organisations, or of none, as the transaction of ``rows`` has it."""
        policy = self.deployment
        for org_id in org_ids:
            row = await rows.orgs.by_id(org_id) if org_id else None
            if row is not None and row.policy:
                policy = policy.stricter(Policy.of_org(row.policy))
        return policy

    async def show(self, actor: Actor, org: str | None = None) -> PolicyView:
        """What counts, and where it comes from. Raises NotFound (org), Unauthenticated."""
        async with self._store.read() as rows:
            asker = await standing(rows, actor, self._clock())
            if org is None:
                return PolicyView(effective=self.deployment, deployment=self.deployment)
            return self._view(await lookup.visible_org(rows, asker, org))

    async def set(self, actor: Actor, org: str, own: Mapping[str, object]) -> PolicyView:
        """Give an organisation this policy of its own, instead of the one before; {} leaves the deployment's alone.

        ``own`` has fields of ``Policy``, as ``Policy.as_dict`` writes them. Raises Invalid with all that is wrong,
        NotFound, Forbidden, Unauthenticated.
        """
        checked = _checked(own)
        async with self._store.change(actor, self._clock()) as change:
            asker = await standing(change, actor, change.now)
            row = await lookup.visible_org(change, asker, org)
            asker.require(Entity.POLICY, Operation.UPDATE, row.id)
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
            return self._view(await lookup.org(change, row.id))

    async def violations(
        self, actor: Actor, org: str | None = None, *, limit: int = LIMIT_DEFAULT, cursor: str | None = None
    ) -> Page[Violation]:
        """Living tokens that break the policy of now, oldest first: those among the next ``limit`` tokens.

        A page may be empty and still have a next one. Raises NotFound, Forbidden, Invalid, Unauthenticated.
        """
        now = self._clock()
        async with self._store.read() as rows:
            org_id = await self._judged(rows, actor, org, Operation.LIST)
            page, last = await self._broken(rows, read_cursor(cursor), check_limit(limit), now, org_id)
        return Page(items=page, next_cursor=None if last is None else write_cursor(last.created_at, last.id))

    async def crowded(self, actor: Actor) -> list[Crowded]:
        """Users with more living tokens than ``tokens_per_user``, a hundred at most. Raises Forbidden,
        Unauthenticated.
        """
        async with self._store.read() as rows:
            await self._judged(rows, actor, None, Operation.LIST)
            most = self.deployment.tokens_per_user
            found = [] if most is None else await rows.living.crowded(most, self._clock(), _CROWDED)
        return [Crowded(user_id=user_id, email=email, tokens=tokens) for user_id, email, tokens in found]

    async def expire(self, actor: Actor, org: str | None = None) -> int:
        """End every living token that breaks the policy of now; how many there were.

        They can be regenerated by what the policy allows. Raises NotFound, Forbidden, Unauthenticated.
        """
        return await self._end_all(actor, org, BECAUSE_POLICY)

    async def end_inactive(self, actor: Actor, after: str | None, most: int) -> tuple[int, str | None]:
        """Of the next ``most`` tokens behind the cursor ``after``, end those that nobody has used for too long.

        How many those were, and the cursor to go on behind; ``None`` after the last token.
        """
        ended, looked = 0, 0
        cursor = read_cursor(after)
        while looked < most:
            count, cursor = await self._end_some(actor, cursor, None, BECAUSE_INACTIVE)
            ended, looked = ended + count, looked + _AT_ONCE
            if cursor is None:
                return ended, None
        return ended, None if cursor is None else write_cursor(cursor.created_at, cursor.id)

    async def _end_all(self, actor: Actor, org: str | None, because: str) -> int:
        async with self._store.read() as rows:
            org_id = await self._judged(rows, actor, org, Operation.UPDATE)
        ended, cursor = await self._end_some(actor, None, org_id, because)
        while cursor is not None:
            more, cursor = await self._end_some(actor, cursor, org_id, because)
            ended += more
        return ended

    async def _end_some(
        self, actor: Actor, after: Cursor | None, org_id: str | None, because: str
    ) -> tuple[int, Cursor | None]:
        async with self._store.read() as rows:
            found, last = await self._broken(rows, after, _AT_ONCE, self._clock(), org_id, because)
        if found:
            async with self._store.change(actor, self._clock()) as change:
                await self._judged(change, actor, org_id, Operation.UPDATE)
                for violation in found:
                    await _end(change, violation, because)
        return len(found), last

    async def _judged(self, rows: Rows, actor: Actor, org: str | None, operation: Operation) -> str | None:
        """The organisation's id, if one was named; the actor may do this there."""
        asker: Standing = await standing(rows, actor, self._clock())
        if org is None:
            asker.require(Entity.POLICY, operation)
            return None
        row = await lookup.visible_org(rows, asker, org)
        asker.require(Entity.POLICY, operation, row.id)
        return row.id

    async def _broken(
        self,
        rows: Rows,
        after: Cursor | None,
        limit: int,
        now: float,
        org_id: str | None,
        because: str = BECAUSE_POLICY,
    ) -> tuple[list[Violation], Cursor | None]:
        policies: dict[str | None, Policy] = {}
        found = []
        page, last = await rows.living.page(after=after, limit=limit, now=now, org_id=org_id)
        for token in page:
            if token.org_id not in policies:
                policies[token.org_id] = await self.of(rows, token.org_id)
            rules = _rules(policies[token.org_id], token, now)
            if because == BECAUSE_INACTIVE:
                rules = tuple(rule for rule in rules if rule == "inactive_after")
            if rules:
                found.append(Violation(token=token, rules=rules))
        return found, last

    def _view(self, row: OrgRow) -> PolicyView:
        return PolicyView(
            effective=self.deployment.stricter(Policy.of_org(row.policy)),
            deployment=self.deployment,
            own=dict(row.policy or {}),
            org_name=row.name,
        )


def _rules(policy: Policy, token: LivingToken, now: float) -> tuple[str, ...]:
    begun = token.created_at if token.rotated_at is None else token.rotated_at
    # A token of several organisations has its permissions by name in each; they are not scopes.
    named: tuple[str, ...] | None = () if token.scopes is None and token.reach is Reach.ORGS else None
    return policy.broken(
        lifetime=None if token.expires_at is None else token.expires_at - begun,
        scopes=named if token.scopes is None else token.scopes,
        unused=now - max(begun, token.last_used_at or 0.0),
    )


async def _end(change: Change, violation: Violation, because: str) -> None:
    token = violation.token
    await change.living.end(token.id, change.now)
    change.touched(token_key(token.id))
    change.audit(
        f"account.{'key' if token.kind is Kind.KEY else 'pat'}.expire",
        target_kind="token",
        target_id=token.id,
        target_name=token.name,
        org_id=token.org_id or "",
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
    return permission_texts(value, name)


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
