"""After every step of a random history, the grant of every token is the one that a small model of the rules predicts.

It also tests the other half of "revoked means revoked": a cache that drops only verdicts whose ``depends`` has an
announced key never holds a verdict that differs from the store's.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from proxy.core.errors import Conflict, Invalid, NotFound
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Grant, RefusedGrant, TokenStatus
from proxy.core.reasons import Reason
from proxy.store.records import TokenRow
from tests.contract.kit import ADMIN, FORMAT, Kit, opened

ROLES = ("admin", "editor", "viewer")
PERMISSIONS = (("*:*",), ("things:*",), ("things:list", "things:read"), ())


@dataclass
class ModelUser:
    email: str
    role: str
    status: str = "active"


@dataclass
class ModelToken:
    prefix: str
    user: str
    org: str
    role: str = ""
    scopes: tuple[str, ...] | None = None
    revoked: bool = False
    deleted: bool = False
    expires_at: float | None = None
    digest: bytes | None = None


class Grants(RuleBasedStateMachine):
    users: Bundle[str] = Bundle("users")
    orgs: Bundle[str] = Bundle("orgs")
    tokens: Bundle[str] = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.directory = tempfile.TemporaryDirectory()
        self.kit: Kit = self.run(self.stack.enter_async_context(opened(Path(self.directory.name))))
        self.model_users: dict[str, ModelUser] = {}
        self.model_orgs: dict[str, str] = {}
        self.model_members: dict[tuple[str, str], str] = {}
        self.model_roles: dict[str, tuple[str, ...]] = {}
        self.model_tokens: dict[str, ModelToken] = {}
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
        """Create two users, an organisation with both, and a personal and a team token of each."""
        self.model_roles = dict(zip(ROLES, PERMISSIONS, strict=False))
        await self.kit.roles.sync_config(ADMIN, self.model_roles)
        org = (await self.kit.orgs.add(ADMIN, "org-0")).id
        self.model_orgs[org] = "active"
        for number in range(2):
            email = f"user{number}@example.org"
            user = (await self.kit.users.add(ADMIN, email, "editor")).id
            self.model_users[user] = ModelUser(email, "editor")
            await self.kit.users.add(ADMIN, email, "viewer", org=org)
            self.model_members[(org, user)] = "viewer"
            for place in ("", org):
                view = (await self.kit.mint(user, "t", org=place or None)).view
                self.model_tokens[view.id] = ModelToken(prefix=view.prefix, user=user, org=place)

    @initialize(target=users)
    def first_users(self) -> MultipleResults[str]:
        return multiple(*self.model_users)

    @initialize(target=orgs)
    def first_orgs(self) -> MultipleResults[str]:
        return multiple(*self.model_orgs)

    @initialize(target=tokens)
    def first_tokens(self) -> MultipleResults[str]:
        return multiple(*self.model_tokens)

    # There are few names, so that emails and organisations are used repeatedly.
    @rule(target=users, number=st.integers(0, 3), role=st.sampled_from(ROLES))
    def add_user(self, number: int, role: str) -> str:
        email = f"user{number}@example.org"
        living = [id_ for id_, user in self.model_users.items() if user.email == email and user.status != "removed"]
        try:
            view = self.run(self.kit.users.add(ADMIN, email, role))
        except Conflict:
            assert living
            return living[0]
        except Invalid:
            assert role not in self.model_roles
            return "usr_nobody"
        assert not living
        assert view.id not in self.model_users, "an email added again is another user"
        self.model_users[view.id] = ModelUser(email, role)
        return str(view.id)

    @rule(target=orgs, number=st.integers(0, 1))
    def add_org(self, number: int) -> str:
        try:
            view = self.run(self.kit.orgs.add(ADMIN, f"org-{number}"))
        except Conflict:
            return str(self.run(self.kit.orgs.show(ADMIN, f"org-{number}")).id)
        self.model_orgs[view.id] = "active"
        return str(view.id)

    def living(self, user: str) -> bool:
        return user in self.model_users and self.model_users[user].status != "removed"

    @rule(user=users, org=orgs, role=st.sampled_from(ROLES))
    def join(self, user: str, org: str, role: str) -> None:
        if not self.living(user) or role not in self.model_roles:
            return
        try:
            self.run(self.kit.users.add(ADMIN, self.model_users[user].email, role, org=org))
        except Conflict:
            assert (org, user) in self.model_members
            return
        self.model_members[(org, user)] = role

    @rule(user=users, org=orgs)
    def leave(self, user: str, org: str) -> None:
        try:
            self.run(self.kit.users.remove_member(ADMIN, user, org))
        except NotFound:
            assert (org, user) not in self.model_members
            return
        del self.model_members[(org, user)]

    @rule(user=users, org=st.none() | orgs, role=st.sampled_from(ROLES))
    def set_role(self, user: str, org: str | None, role: str) -> None:
        try:
            self.run(self.kit.users.set_role(ADMIN, user, role, org))
        except NotFound:
            assert not self.living(user) or (org is not None and (org, user) not in self.model_members)
            return
        except Invalid:
            assert role not in self.model_roles
            return
        if org is None:
            self.model_users[user] = replace(self.model_users[user], role=role)
        else:
            self.model_members[(org, user)] = role

    @rule(user=users, verb=st.sampled_from(["suspend", "resume"]))
    def suspend_or_resume(self, user: str, verb: str) -> None:
        if self.living(user):
            self.run(getattr(self.kit.users, verb)(ADMIN, user))
            self.model_users[user].status = "suspended" if verb == "suspend" else "active"

    @rule(user=consumes(users))
    def remove(self, user: str) -> None:
        if self.living(user):
            self.run(self.kit.users.remove(ADMIN, user))
            self.model_users[user].status = "removed"
            self.model_members = {key: role for key, role in self.model_members.items() if key[1] != user}

    @rule(org=orgs, verb=st.sampled_from(["suspend", "resume"]))
    def suspend_or_resume_org(self, org: str, verb: str) -> None:
        self.run(getattr(self.kit.orgs, verb)(ADMIN, org))
        self.model_orgs[org] = "suspended" if verb == "suspend" else "active"

    @rule(role=st.sampled_from(ROLES), permissions=st.sampled_from(PERMISSIONS))
    def edit_role(self, role: str, permissions: tuple[str, ...]) -> None:
        self.run(self.kit.roles.set(ADMIN, role, permissions))
        self.model_roles[role] = permissions

    @rule(kept=st.sets(st.sampled_from(ROLES), min_size=1), permissions=st.sampled_from(PERMISSIONS))
    def reconfigure_roles(self, kept: set[str], permissions: tuple[str, ...]) -> None:
        self.run(self.kit.roles.sync_config(ADMIN, dict.fromkeys(sorted(kept), permissions)))
        self.model_roles = {view.name: view.permissions for view in self.run(self.kit.roles.list(ADMIN))}
        assert kept <= set(self.model_roles)

    @rule(
        target=tokens,
        user=users,
        org=st.none() | orgs,
        expires=st.none() | st.just(100.0),
        scopes=st.sampled_from([(), ("things:read",)]),
    )
    def create(self, user: str, org: str | None, expires: float | None, scopes: tuple[str, ...]) -> str:
        able = (
            self.living(user)
            and self.model_users[user].status == "active"
            and (org is None or (self.model_orgs[org] == "active" and (org, user) in self.model_members))
        )
        try:
            made = self.run(self.kit.mint(user, "t", org=org, expires=expires, scopes=scopes or None))
        except (NotFound, Conflict, Invalid):
            assert not able
            return "none"
        assert able
        self.model_tokens[made.view.id] = ModelToken(
            prefix=made.view.prefix, user=user, org=org or "", scopes=scopes or None, expires_at=made.view.expires_at
        )
        return str(made.view.id)

    @rule(target=tokens, org=orgs, role=st.sampled_from(ROLES))
    def create_key(self, org: str, role: str) -> str:
        minted = FORMAT.mint(Kind.KEY)
        self.run(self._insert_key(minted.token_id, minted.prefix, org, role))
        self.model_tokens[minted.token_id] = ModelToken(prefix=minted.prefix, user="", org=org, role=role)
        return minted.token_id

    async def _insert_key(self, token_id: str, prefix: str, org: str, role: str) -> None:
        async with self.kit.store.change(ADMIN) as change:
            await change.tokens.add(
                TokenRow(
                    id=token_id,
                    prefix=prefix,
                    kind=Kind.KEY,
                    reach=Reach.ORG,
                    name="k",
                    description="",
                    user_id=None,
                    org_id=org,
                    role=role,
                    scopes=None,
                    status=TokenStatus.ACTIVE,
                    hash="-",
                    digest=None,
                    created_by_kind=ADMIN.kind.value,
                    created_by=ADMIN.id,
                    created_at=0.0,
                    updated_at=0.0,
                )
            )
            change.touched(f"token:{token_id}")
            change.audit("account.key.mint", target_kind="token", target_id=token_id, org_id=org)

    def there(self, token: str) -> bool:
        return token in self.model_tokens and not self.model_tokens[token].deleted

    @rule(token=tokens)
    def revoke(self, token: str) -> None:
        if self.there(token):
            self.run(self.kit.tokens.revoke(ADMIN, token))
            self.model_tokens[token].revoked = True

    @rule(token=tokens)
    def delete(self, token: str) -> None:
        if self.there(token):
            self.run(self.kit.tokens.delete(ADMIN, token))
            self.model_tokens[token].deleted = True

    @rule(token=tokens)
    def rotate(self, token: str) -> None:
        if not self.there(token):
            return
        before = self.run(self.kit.store.token_hash(token))
        try:
            self.run(self.kit.tokens.rotate(ADMIN, token))
        except Conflict:
            model = self.model_tokens[token]
            expired = model.expires_at is not None and model.expires_at <= self.kit.clock.now
            assert model.revoked or expired or not self.living(model.user)
            assert self.run(self.kit.store.token_hash(token)) == before
            return
        assert self.run(self.kit.store.token_hash(token)) != before

    @rule()
    def time_passes(self) -> None:
        self.kit.clock.now += 60.0
        # The gateway checks a grant's expiry by itself; every other change must come through the feed.
        self.cache.clear()

    def expected(self, model: ModelToken) -> Reason | tuple[str, tuple[str, ...]]:
        """The reason for a refusal, or the role and its present permissions, as the model predicts."""
        if model.deleted:
            return Reason.TOKEN_UNKNOWN
        if model.revoked:
            return Reason.TOKEN_REVOKED
        if model.expires_at is not None and model.expires_at <= self.kit.clock.now:
            return Reason.TOKEN_EXPIRED
        if model.user:
            status = self.model_users[model.user].status
            if status == "removed":
                return Reason.OWNER_REMOVED
            if model.org and (model.org, model.user) not in self.model_members:
                return Reason.MEMBER_REMOVED
            if status != "active":
                return Reason.OWNER_SUSPENDED
        if model.org and self.model_orgs[model.org] != "active":
            return Reason.ORG_SUSPENDED
        if not model.user:
            role = model.role
        else:
            role = self.model_members[(model.org, model.user)] if model.org else self.model_users[model.user].role
        return role, self.model_roles.get(role, ())

    @invariant()
    def every_grant_is_what_the_model_says(self) -> None:
        touched = {key for _, keys in self.kit.announced for key in keys}
        self.kit.announced.clear()
        self.cache = {prefix: one for prefix, one in self.cache.items() if touched.isdisjoint(one.depends)}
        for token_id, model in self.model_tokens.items():
            verdict = self.run(self.kit.resolve(model.prefix))
            assert verdict.prefix == model.prefix
            assert f"token:{token_id}" in verdict.depends
            expected = self.expected(model)
            if isinstance(expected, Reason):
                assert isinstance(verdict, RefusedGrant)
                assert verdict.reason is expected
            else:
                assert isinstance(verdict, Grant)
                assert (verdict.role, verdict.permissions.texts) == (expected[0], tuple(sorted(expected[1])))
                assert (None if verdict.scopes is None else verdict.scopes.texts) == model.scopes
                assert (verdict.user_id, verdict.org_id) == (model.user, model.org)
                assert verdict.reach is (Reach.ORG if model.org else Reach.PERSONAL)
                assert verdict.expires_at == model.expires_at
            assert self.cache.setdefault(model.prefix, verdict) == verdict, "a change was not announced to caches"


def test_every_grant_is_what_a_model_says_after_random_changes(dialect: str) -> None:
    examples = 25 if dialect == "sqlite" else 8
    run_state_machine_as_test(Grants, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None))
