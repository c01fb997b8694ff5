"""Grants that reach several organisations are right after every change, and every change that alters one is announced.

The cache in these tests drops only verdicts whose ``depends`` has an announced key, as a gateway does.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from proxy.core.dependency_keys import member_key, memberships_key, org_key, role_key, token_key, user_key
from proxy.core.errors import Conflict, NotFound
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Grant, OrgGrant, RefusedGrant
from proxy.core.permissions import PermissionSet
from proxy.core.reasons import Reason
from proxy.services import grants
from proxy.store import tables
from proxy.store.records import TokenRow
from tests.contract.kit import ADMIN, Kit, opened

ANN = "ann@example.org"
NAMES = ("team", "other", "third")
ROLES = ("admin", "editor", "viewer")
PERMISSIONS = (("*:*",), ("things:*",), ("things:list", "things:read"), ())


async def attach(kit: Kit, token_id: str, org_id: str, permissions: Sequence[str] | None) -> None:
    """Attach a token to an organisation with these permissions and no others, or (None) detach it."""
    table = tables.token_orgs
    async with kit.store.change(ADMIN) as change:
        await change.connection.execute(table.delete().where(table.c.token_id == token_id, table.c.org_id == org_id))
        if permissions is not None:
            values = {"token_id": token_id, "org_id": org_id, "permissions": list(permissions), "created_at": 0.0}
            await change.connection.execute(table.insert().values(**values))
        change.touched(token_key(token_id))
        change.audit("account.key.scopes", target_kind="token", target_id=token_id)


def seen(verdict: Grant | RefusedGrant) -> dict[str, tuple[str, tuple[str, ...]]] | Reason:
    """The reason for a refusal, or role and permissions in each organisation, by name."""
    if isinstance(verdict, RefusedGrant):
        return verdict.reason
    assert verdict.orgs is not None
    for org in verdict.orgs.values():
        assert verdict.orgs[org.org_id] is verdict.orgs[org.org_name] is org
    return {org.org_name: (org.role, org.permissions.texts) for org in verdict.orgs.values()}


class World:
    """Ann, an editor in the account and a viewer of ``team``, with an account-wide token; and an organisation token."""

    def __init__(self, kit: Kit, ann: str, orgs: dict[str, str], account: TokenRow, attached: TokenRow) -> None:
        self.kit = kit
        self.ann = ann
        self.orgs = orgs
        self.account = account
        self.attached = attached

    async def after_change(self, row: TokenRow, change: Callable[[World], Awaitable[object]]) -> Grant | RefusedGrant:
        """The verdict after a change that announced one of the keys which the former verdict depends on."""
        before = await self.kit.resolve(row.prefix)
        self.kit.announced.clear()
        await change(self)
        touched = {key for _, keys in self.kit.announced for key in keys}
        assert touched & set(before.depends), "the change was not announced to caches"
        return await self.kit.resolve(row.prefix)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        orgs = {"team": (await kit.orgs.show(ADMIN, "team")).id}
        for name in NAMES[1:]:
            orgs[name] = (await kit.orgs.add(ADMIN, name)).id
        ann = (await kit.users.show(ADMIN, ANN)).id
        account = await kit.insert(Kind.PAT, Reach.ACCOUNT, ann)
        attached = await kit.insert(Kind.KEY, Reach.ORGS)
        await attach(kit, attached.id, orgs["team"], ["things:read"])
        await attach(kit, attached.id, orgs["other"], ["things:*"])
        yield World(kit, ann, orgs, account, attached)
        await kit.intact()


VIEWER, EDITOR = ("viewer", ("things:list", "things:read")), ("editor", ("things:*",))


async def test_an_account_wide_token_has_the_role_of_each_membership(world: World) -> None:
    await world.kit.users.add(ADMIN, ANN, "editor", org="other")
    verdict = await world.kit.resolve(world.account.prefix)
    assert isinstance(verdict, Grant)
    assert (verdict.role, verdict.permissions.texts, verdict.org_id) == ("editor", ("things:*",), "")
    assert seen(verdict) == {"team": VIEWER, "other": EDITOR}
    team, other, ann = world.orgs["team"], world.orgs["other"], world.ann
    assert set(verdict.depends) == {
        token_key(world.account.id), user_key(ann), memberships_key(ann), role_key("editor"), role_key("viewer"),
        org_key(team), org_key(other), member_key(team, ann), member_key(other, ann),
    }  # fmt: skip
    assert len(set(verdict.depends)) == len(verdict.depends)


async def test_an_organisation_token_has_its_attached_permissions_and_none_in_the_account(world: World) -> None:
    verdict = await world.kit.resolve(world.attached.prefix)
    assert isinstance(verdict, Grant)
    assert (verdict.role, verdict.permissions.texts, verdict.user_id, verdict.org_id) == ("", (), "", "")
    assert seen(verdict) == {"team": ("", ("things:read",)), "other": ("", ("things:*",))}
    keys = {token_key(world.attached.id), org_key(world.orgs["team"]), org_key(world.orgs["other"])}
    assert set(verdict.depends) == keys


CHANGES: list[tuple[str, Callable[[World], Awaitable[object]], Any]] = [
    ("membership added", lambda w: w.kit.users.add(ADMIN, ANN, "editor", org="other"),
     {"team": VIEWER, "other": EDITOR}),
    ("membership removed", lambda w: w.kit.users.remove_member(ADMIN, ANN, "team"), {}),
    ("membership's role changed", lambda w: w.kit.users.set_role(ADMIN, ANN, "editor", "team"), {"team": EDITOR}),
    ("role edited", lambda w: w.kit.roles.set(ADMIN, "viewer", ["a:b"]), {"team": ("viewer", ("a:b",))}),
    ("role gone", lambda w: w.kit.roles.sync_config(ADMIN, {"editor": ["things:*"]}), {"team": ("viewer", ())}),
    ("organisation suspended", lambda w: w.kit.orgs.suspend(ADMIN, "team"), {}),
    ("owner's role changed", lambda w: w.kit.users.set_role(ADMIN, ANN, "admin"), {"team": VIEWER}),
    ("owner suspended", lambda w: w.kit.users.suspend(ADMIN, ANN), Reason.OWNER_SUSPENDED),
    ("owner removed", lambda w: w.kit.users.remove(ADMIN, ANN), Reason.OWNER_REMOVED),
    ("token revoked", lambda w: w.kit.tokens.revoke(ADMIN, w.account.id), Reason.TOKEN_REVOKED),
]  # fmt: skip


@pytest.mark.parametrize(("change", "after"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
async def test_every_change_to_an_account_wide_token_is_announced(
    world: World, change: Callable[[World], Awaitable[object]], after: Any
) -> None:
    assert seen(await world.after_change(world.account, change)) == after


async def test_the_undoing_of_a_change_is_announced_too(world: World) -> None:
    """A suspended organisation, a deleted role or an ended membership can come back."""
    await world.kit.orgs.suspend(ADMIN, "team")
    assert seen(await world.after_change(world.account, lambda w: w.kit.orgs.resume(ADMIN, "team"))) == {"team": VIEWER}
    await world.kit.orgs.suspend(ADMIN, "other")
    assert seen(await world.kit.resolve(world.attached.prefix)) == {"team": ("", ("things:read",))}
    resumed = await world.after_change(world.attached, lambda w: w.kit.orgs.resume(ADMIN, "other"))
    assert seen(resumed) == {"team": ("", ("things:read",)), "other": ("", ("things:*",))}
    await world.kit.roles.sync_config(ADMIN, {"editor": ["things:*"]})
    back = await world.after_change(world.account, lambda w: w.kit.roles.set(ADMIN, "viewer", ["a:b"]))
    assert seen(back) == {"team": ("viewer", ("a:b",))}
    await world.kit.users.remove_member(ADMIN, ANN, "team")
    joined = await world.after_change(world.account, lambda w: w.kit.users.add(ADMIN, ANN, "editor", org="third"))
    assert seen(joined) == {"third": EDITOR}


async def test_every_change_to_a_tokens_attachments_is_announced(world: World) -> None:
    team = world.orgs["team"]
    changed = await world.after_change(world.attached, lambda w: attach(w.kit, w.attached.id, team, ["a:b"]))
    assert seen(changed) == {"team": ("", ("a:b",)), "other": ("", ("things:*",))}
    detached = await world.after_change(world.attached, lambda w: attach(w.kit, w.attached.id, w.orgs["other"], None))
    assert seen(detached) == {"team": ("", ("a:b",))}
    suspended = await world.after_change(world.attached, lambda w: w.kit.orgs.suspend(ADMIN, "team"))
    assert seen(suspended) == {}
    attached = await world.after_change(world.attached, lambda w: attach(w.kit, w.attached.id, w.orgs["third"], []))
    assert seen(attached) == {"third": ("", ())}


@pytest.mark.parametrize(
    ("kind", "reach", "owned", "placed"),
    [
        (Kind.KEY, Reach.PERSONAL, True, False), (Kind.KEY, Reach.ACCOUNT, True, False),
        (Kind.PAT, Reach.ORGS, True, False), (Kind.PAT, Reach.ACCOUNT, False, False),
        (Kind.PAT, Reach.PERSONAL, False, False), (Kind.PAT, Reach.ACCOUNT, True, True),
        (Kind.PAT, Reach.PERSONAL, True, True), (Kind.KEY, Reach.ORGS, True, False),
        (Kind.KEY, Reach.ORGS, False, True), (Kind.KEY, Reach.ORG, True, True), (Kind.PAT, Reach.ORG, True, False),
    ],
)  # fmt: skip
async def test_a_row_of_an_impossible_shape_is_no_token(
    world: World, kind: Kind, reach: Reach, owned: bool, placed: bool
) -> None:
    """Its kind, reach, owner and organisation do not fit together."""
    row = await world.kit.insert(kind, reach, world.ann if owned else None, world.orgs["team"] if placed else None)
    verdict = await world.kit.resolve(row.prefix)
    assert isinstance(verdict, RefusedGrant) and verdict.reason is Reason.TOKEN_UNKNOWN


async def test_the_verdict_on_a_row_is_the_one_that_gateways_get(world: World) -> None:
    """A service inside its transaction gets the same verdict as a gateway."""
    ids = [world.account.id, world.attached.id]
    async with world.kit.store.read() as rows:
        found = await rows.grant_rows(ids)
    for row in (world.account, world.attached):
        verdict = grants.verdict(row.prefix, row.id, found.tokens[row.id], world.kit.clock.now)
        assert verdict == await world.kit.resolve(row.prefix)
        other = grants.verdict("acme_pat_" + row.id[::-1], row.id, found.tokens[row.id], world.kit.clock.now)
        assert isinstance(other, RefusedGrant) and other.reason is Reason.TOKEN_UNKNOWN


class Several(RuleBasedStateMachine):
    """Compares random histories of members, roles, organisations and attachments with a model of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.directory = tempfile.TemporaryDirectory()
        self.kit: Kit = self.run(self.stack.enter_async_context(opened(Path(self.directory.name))))
        self.users: list[str] = []
        self.orgs: dict[str, str] = {}
        self.suspended: set[str] = set()
        self.idle: set[str] = set()
        self.members: dict[tuple[str, str], str] = {}
        self.roles: dict[str, tuple[str, ...]] = dict(zip(ROLES, PERMISSIONS, strict=False))
        self.attached: dict[tuple[str, str], tuple[str, ...]] = {}
        self.tokens: list[TokenRow] = []
        self.cache: dict[str, Grant | RefusedGrant] = {}
        self.run(self.begin())

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.kit.intact())
        self.run(self.stack.aclose())
        self.runner.close()
        self.directory.cleanup()

    async def begin(self) -> None:
        await self.kit.roles.sync_config(ADMIN, self.roles)
        for name in NAMES:
            self.orgs[name] = (await self.kit.orgs.add(ADMIN, name)).id
        for number in range(2):
            self.users.append((await self.kit.users.add(ADMIN, f"u{number}@example.org", "editor")).id)
            self.tokens.append(await self.kit.insert(Kind.PAT, Reach.ACCOUNT, self.users[-1]))
            self.tokens.append(await self.kit.insert(Kind.KEY, Reach.ORGS))

    users_of: st.SearchStrategy[int] = st.integers(0, 1)
    names = st.sampled_from(NAMES)
    roles_of = st.sampled_from(ROLES)

    @rule(user=users_of, org=names, role=roles_of)
    def join(self, user: int, org: str, role: str) -> None:
        if role not in self.roles:
            return
        try:
            self.run(self.kit.users.add(ADMIN, f"u{user}@example.org", role, org=org))
        except Conflict:
            assert (org, self.users[user]) in self.members
            self.run(self.kit.users.set_role(ADMIN, self.users[user], role, org))
        self.members[(org, self.users[user])] = role

    @rule(user=users_of, org=names)
    def leave(self, user: int, org: str) -> None:
        try:
            self.run(self.kit.users.remove_member(ADMIN, self.users[user], org))
        except NotFound:
            assert (org, self.users[user]) not in self.members
            return
        del self.members[(org, self.users[user])]

    @rule(org=names)
    def suspend_or_resume(self, org: str) -> None:
        self.run(self.kit.orgs.resume(ADMIN, org) if org in self.suspended else self.kit.orgs.suspend(ADMIN, org))
        self.suspended ^= {org}

    @rule(user=users_of)
    def suspend_or_resume_user(self, user: int) -> None:
        held = self.users[user]
        self.run(self.kit.users.resume(ADMIN, held) if held in self.idle else self.kit.users.suspend(ADMIN, held))
        self.idle ^= {held}

    @rule(role=roles_of, permissions=st.sampled_from(PERMISSIONS))
    def edit_role(self, role: str, permissions: tuple[str, ...]) -> None:
        self.run(self.kit.roles.set(ADMIN, role, permissions))
        self.roles[role] = permissions

    @rule(kept=st.sets(roles_of, min_size=1), permissions=st.sampled_from(PERMISSIONS))
    def reconfigure_roles(self, kept: set[str], permissions: tuple[str, ...]) -> None:
        self.run(self.kit.roles.sync_config(ADMIN, dict.fromkeys(sorted(kept), permissions)))
        self.roles = {view.name: tuple(view.permissions) for view in self.run(self.kit.roles.list(ADMIN))}

    @rule(token=st.sampled_from((1, 3)), org=names, permissions=st.none() | st.sampled_from(PERMISSIONS))
    def attach(self, token: int, org: str, permissions: tuple[str, ...] | None) -> None:
        row = self.tokens[token]
        self.run(attach(self.kit, row.id, self.orgs[org], permissions))
        self.attached.pop((row.id, org), None)
        if permissions is not None:
            self.attached[(row.id, org)] = permissions

    def opinion(self, row: TokenRow) -> dict[str, OrgGrant] | Reason:
        if row.user_id in self.idle:
            return Reason.OWNER_SUSPENDED
        found: dict[str, tuple[str, tuple[str, ...]]] = {}
        if row.reach is Reach.ACCOUNT:
            for (org, user), role in self.members.items():
                if user == row.user_id:
                    found[org] = (role, self.roles.get(role, ()))
        else:
            found = {org: ("", permissions) for (token, org), permissions in self.attached.items() if token == row.id}
        return {
            key: OrgGrant(org_id=self.orgs[org], org_name=org, role=role, permissions=PermissionSet.of(permissions))
            for org, (role, permissions) in found.items()
            if org not in self.suspended
            for key in (org, self.orgs[org])
        }

    @invariant()
    def every_grant_is_what_the_model_says(self) -> None:
        touched = {key for _, keys in self.kit.announced for key in keys}
        self.kit.announced.clear()
        self.cache = {prefix: one for prefix, one in self.cache.items() if touched.isdisjoint(one.depends)}
        for row in self.tokens:
            verdict = self.run(self.kit.resolve(row.prefix))
            assert (verdict.reason if isinstance(verdict, RefusedGrant) else verdict.orgs) == self.opinion(row)
            assert self.cache.setdefault(row.prefix, verdict) == verdict, "a change was not announced to caches"


def test_every_grant_is_what_a_model_says_after_random_changes(dialect: str) -> None:
    examples = 8 if dialect == "sqlite" else 4
    run_state_machine_as_test(Several, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None))
