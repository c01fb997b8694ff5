"""Organisation keys: creates and lists keys, and attaches organisation tokens to organisations.

A key belongs to organisations and not to a user. Its other operations are those of tokens (``TokenService``).

Rules:

1. A key of one organisation has a role, whose name is fixed at creation. An organisation token has permissions in each
   of several organisations, and uses a seat in each.
2. The permissions of a key must be within those that the caller has in that organisation: by one role there, and by the
   scopes of the token presented. A key created by a token never outlives that token, and is used from no address from
   which that token is not, but it does outlive the user.
3. Attaching a key needs a caller that sees it and has the permission in the organisation that it is attached to.
4. A key creates no tokens and no keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from proxy.core.errors import Conflict, FieldError, Forbidden, Invalid
from proxy.core.kinds import KINDS, Kind, Reach
from proxy.core.model import Actor
from proxy.core.permissions import PermissionSet
from proxy.services import idempotency, lookalikes, lookup
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.grants import ORG_ACTIVE
from proxy.services.idempotency import IdempotencyKey
from proxy.services.paging import FIRST_PAGE, Page, PageRequest
from proxy.services.policy.seat_limit import require_seats
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import authorization, loading
from proxy.services.tokens.authorization import Verb
from proxy.services.tokens.issuance import (
    ORGS_MOST,
    Draft,
    KeyRequest,
    Minter,
    ineffective_scopes,
    lifetime,
    new_row,
    permissions,
)
from proxy.services.tokens.loading import KEYS_MAKE_NOTHING, Found
from proxy.services.tokens.queries import TokenFilter
from proxy.services.tokens.service import TokenService
from proxy.services.validation import Fields
from proxy.services.views import Changed, Created, TokenView
from proxy.store.change import Change, Rows
from proxy.store.records import OrgRow, TokenRow
from proxy.store.store import Store

_TOO_MUCH = "this permits more in the organisation than you may do there"
_NOT_SEVERAL = "only an organisation token is attached to organisations; this one belongs to one"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """The properties of a new key, valid in one transaction: a role in one organisation, or permissions in several."""

    orgs: tuple[OrgRow, ...]
    role: str | None
    grants: tuple[tuple[str, ...], ...]
    expires_at: float | None
    warnings: tuple[str, ...]


class KeyService:
    """Creates and lists keys. ``key`` arguments are an id or a public prefix, ``org`` a name or an id.

    All methods raise StoreUnavailable and Unauthenticated.
    """

    def __init__(
        self, store: Store, clock: Callable[[], float], *, minter: Minter, policies: PolicyService, tokens: TokenService
    ) -> None:
        self._store = store
        self._clock = clock
        self._minter = minter
        self._policies = policies
        self._tokens = tokens

    async def create(self, actor: Actor, new: KeyRequest, *, idempotency_key: IdempotencyKey | None = None) -> Created:
        """Create a key of one organisation, or an organisation token that is attached to several.

        Raises Invalid, NotFound (org), Forbidden, Conflict (suspended, no seat), AuthorityOverloaded.
        """
        fields = Fields()
        draft = Draft.of(new, fields)
        grants = _shape(new, fields)
        fields.done()
        async with self._store.read() as rows:
            now = self._clock()
            caller = await load_caller(rows, actor, now)
            made = await idempotency.created_before(rows, actor, idempotency_key, now)
            if made is not None:
                return await loading.replayed(rows, caller, made, now)
            await self._plan(rows, caller, new, draft, grants, now)
        value = await self._minter.value(actor, Kind.KEY)
        async with self._store.change(actor, self._clock()) as change:
            caller = await load_caller(change, actor, change.now)
            made = await idempotency.created_before(change, actor, idempotency_key, change.now)
            if made is not None:
                return await loading.replayed(change, caller, made, change.now)
            plan = await self._plan(change, caller, new, draft, grants, change.now)
            one = plan.role is not None
            row = new_row(
                value,
                draft,
                actor,
                change.now,
                kind=Kind.KEY,
                reach=Reach.ORG if one else Reach.ORGS,
                expires_at=plan.expires_at,
                org_id=plan.orgs[0].id if one else None,
                role=plan.role,
            )
            await change.tokens.add(row)
            for org, texts in zip(plan.orgs, plan.grants, strict=False):
                await change.token_orgs.add(row.id, org.id, sorted(set(texts)), change.now)
            await idempotency.remember(change, idempotency_key, row.id)
            details: dict[str, object] = {"role": row.role, "scopes": row.scopes, "expires_at": row.expires_at}
            details["ip_ranges"] = row.ip_ranges
            details.update(loading.lookalike_details(draft.texts))
            loading.record(change, "mint", row, details, [org.id for org in plan.orgs])
            view = await loading.show(change, caller, row.id, change.now)
        return Created(view=view, token=value.token, warnings=plan.warnings + lookalikes.warnings(draft.texts))

    async def list(
        self, actor: Actor, wanted: TokenFilter | None = None, page: PageRequest = FIRST_PAGE
    ) -> Page[TokenView]:
        """Keys that the caller may see, oldest first. Raises NotFound (org), Invalid."""
        only = replace(wanted or TokenFilter(), kind=Kind.KEY)
        return await self._tokens.list(actor, only, page)

    async def attach(self, actor: Actor, key: str, org: str, granted: Iterable[str]) -> Changed:
        """Attach an organisation token to an organisation, or replace its permissions there.

        Raises NotFound, Forbidden, Invalid, Conflict (not an organisation token, suspended, no seat).
        """
        fields = Fields()
        texts = _granted(fields, granted, "permissions")
        fields.done()
        async with self._store.change(actor, self._clock()) as change:
            caller, found, organisation = await self._at(change, actor, key, org, AccountOperation.UPDATE)
            before = next((one for one in found.attached if one.org_id == organisation.id), None)
            await self._require_attachable(change, caller, found, organisation, texts)
            after = sorted(set(texts))
            if before is None:
                if len(found.attached) >= ORGS_MOST:
                    raise Conflict(f"an organisation token is attached to at most {ORGS_MOST} organisations")
                await require_seats(change, self._policies, organisation.id, change.now)
                await change.token_orgs.add(found.row.id, organisation.id, after, change.now)
            elif list(before.permissions) != after:
                await change.token_orgs.set(found.row.id, organisation.id, after)
            if before is None or list(before.permissions) != after:
                was = None if before is None else list(before.permissions)
                _record(change, "attach", found.row, organisation, {"before": was, "after": after})
            return Changed(view=await loading.show(change, caller, found.row.id, change.now))

    async def detach(self, actor: Actor, key: str, org: str) -> Changed:
        """Detach an organisation token from an organisation. Idempotent.

        Raises NotFound, Forbidden, Conflict (not an organisation token, the last one).
        """
        async with self._store.change(actor, self._clock()) as change:
            caller, found, organisation = await self._at(change, actor, key, org, AccountOperation.DELETE)
            before = next((one for one in found.attached if one.org_id == organisation.id), None)
            if before is not None:
                if len(found.attached) == 1:
                    raise Conflict("this is the last organisation of the token: delete the token instead")
                await change.token_orgs.remove(found.row.id, organisation.id)
                _record(change, "detach", found.row, organisation, {"before": list(before.permissions)})
            return Changed(view=await loading.show(change, caller, found.row.id, change.now))

    async def _at(
        self, change: Change, actor: Actor, key: str, org: str, operation: AccountOperation
    ) -> tuple[Caller, Found, OrgRow]:
        caller = await load_caller(change, actor, change.now)
        found = await loading.find(change, caller, self._policies, key, Verb.SHOW)
        organisation = await lookup.visible_org(change, caller, org)
        caller.require(AccountEntity.KEYS, operation, organisation.id)
        if found.row.reach is not Reach.ORGS:
            raise Conflict(_NOT_SEVERAL)
        return caller, found, organisation

    async def _require_attachable(
        self, rows: Rows, caller: Caller, found: Found, organisation: OrgRow, texts: tuple[str, ...]
    ) -> None:
        _require_active(organisation)
        policy = await self._policies.effective(rows, organisation.id)
        faults = [
            ("permissions" + place.removeprefix("scopes"), problem) for place, problem in policy.scope_faults(texts)
        ]
        if faults:
            raise Invalid(*faults[0], *faults[1:])
        row = found.row
        begun = row.created_at if row.rotated_at is None else row.rotated_at
        if policy.broken(lifetime=None if row.expires_at is None else row.expires_at - begun, scopes=()):
            raise Conflict("the token lives longer than the policy of the organisation allows")
        too_much = [] if caller.grant is None else authorization.expiry_errors(caller.grant, row.expires_at)
        too_much += [] if caller.grant is None else authorization.range_errors(caller.grant, row.ip_ranges)
        if not caller.may_give(PermissionSet.of(texts), organisation.id):
            too_much.append(("permissions", _TOO_MUCH))
        if too_much:
            raise Forbidden("an organisation token cannot be given this", *too_much)

    async def _plan(
        self,
        rows: Rows,
        caller: Caller,
        new: KeyRequest,
        draft: Draft,
        grants: tuple[tuple[str, tuple[str, ...]], ...],
        now: float,
    ) -> _Plan:
        if caller.grant is not None and not KINDS[caller.grant.kind].may_manage:
            raise Forbidden(KEYS_MAKE_NOTHING)
        references = [org for org, _ in grants] if new.org is None else [new.org]
        orgs = [await lookup.visible_org(rows, caller, reference) for reference in references]
        for org in orgs:
            caller.require(AccountEntity.KEYS, AccountOperation.CREATE, org.id)
            _require_active(org)
        fields = Fields()
        if len({org.id for org in orgs}) < len(orgs):
            fields.fault("grants", "each organisation once")
        policy = await self._policies.effective(rows, *(org.id for org in orgs))
        lives = lifetime(policy, draft.expires, fields)
        role = None if new.role is None else await lookup.role(rows, new.role)
        given = (
            [PermissionSet.of(texts) for _, texts in grants] if role is None else [PermissionSet.of(role.permissions)]
        )
        for place, problem in policy.scope_faults(() if role is None and draft.scopes is None else draft.scopes):
            fields.fault(place, problem)
        for org, (_, texts) in zip(orgs, grants, strict=False):
            for place, problem in policy.scope_faults(texts):
                fields.fault(f"grants.{org.name}{place.removeprefix('scopes')}", problem)
        fields.done()
        expires_at = lives.end(now)
        faults: list[FieldError] = []
        if caller.grant is not None:
            faults += authorization.expiry_errors(caller.grant, expires_at)
            faults += authorization.scope_errors(caller.grant, () if role is None else draft.scopes)
            faults += authorization.range_errors(caller.grant, draft.ip_ranges)
        for org, held in zip(orgs, given, strict=True):
            if not caller.may_give(held, org.id):
                faults.append(("role" if role is not None else f"grants.{org.name}", _TOO_MUCH))
        if faults:
            raise Forbidden(
                "a key cannot be given more than you may do, or live longer than the token presented", *faults
            )
        if role is None:
            for org in orgs:
                await require_seats(rows, self._policies, org.id, now)
        return _Plan(
            orgs=tuple(orgs),
            role=None if role is None else role.name,
            grants=tuple(texts for _, texts in grants),
            expires_at=expires_at,
            warnings=lives.warnings + ineffective_scopes(given, draft.scopes),
        )


def _shape(new: KeyRequest, fields: Fields) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The organisations and permissions of an organisation token; empty for a key of one organisation."""
    if new.grants is None:
        if new.org is None:
            fields.fault("org", "name the organisation, or several with their permissions (grants)")
        if new.role is None:
            fields.fault("role", "name the role")
        return ()
    for name, value in (("org", new.org), ("role", new.role)):
        if value is not None:
            fields.fault(name, "an organisation token has permissions in each organisation (grants) instead")
    if not 1 <= len(new.grants) <= ORGS_MOST:
        fields.fault("grants", f"1 to {ORGS_MOST} organisations")
    return tuple((org, _granted(fields, texts, f"grants.{org}")) for org, texts in new.grants.items())


def _granted(fields: Fields, texts: Iterable[str], place: str) -> tuple[str, ...]:
    found = permissions(fields, texts, place)
    if not found:
        fields.fault(place, "name at least one permission")
    return found


def _require_active(org: OrgRow) -> None:
    if org.status != ORG_ACTIVE:
        raise Conflict("the organisation is suspended and cannot be given a key")


def _record(change: Change, verb: str, row: TokenRow, org: OrgRow, details: dict[str, object]) -> None:
    loading.record(change, verb, row, {"org": org.name, **details}, (org.id,))
