"""Threat model §7: tables of who may do what with which token.

Each cell is a real request for a new token: ``A`` allowed, ``F`` forbidden with a message, ``N`` not found, with
exactly the message for a token that does not exist. No cell is omitted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.core.errors import Forbidden, Invalid, NotFound
from proxy.core.kinds import Reach
from proxy.core.model import Actor
from proxy.services.policy.model import AdminRight, TokenPolicy
from proxy.services.tokens.issuance import KeyRequest, TokenRequest
from proxy.services.tokens.queries import TokenFilter
from proxy.services.views import Created
from tests.contract.kit import ADMIN, Kit, opened

MEL, NED, SOL = "mel@example.org", "ned@example.org", "sol@example.org"
ADA, ROOT = "ada@example.org", "root@example.org"
CHIEF = ("patgate.keys:*", "patgate.tokens:*", "things:*")

ACTORS = {
    "operator": "the operator, over the control socket",
    "admin": "an administrator of the account: personal token, role *:*",
    "chief team": "an administrator of lab: team token of lab, role patgate.tokens:* patgate.keys:* things:*",
    "chief wide": "the same person: account-wide token; nothing in the account itself",
    "member wide": "a member of lab: account-wide token without scopes; a viewer everywhere",
    "member team": "the same person: team token of lab without scopes",
    "member scoped": "the same person: team token of lab, scopes things:read",
    "member manager": "the same person: team token of lab, scopes things:read patgate.tokens:list and :update",
    "key": "a key of lab whose role is that of its administrators",
    "org token": "an organisation token: lab, as its administrators; shop, things:read",
    "other user": "somebody else in no organisation with them: personal token, role viewer",
    "other org": "an administrator of shop: team token of shop",
}

#                                      o  a  c  c  m  m  m  m  k  o  o  o
#                                      p  d  h  h  e  e  e  e  e  r  t  t
#                                      e  m  .  .  m  m  m  m  y  g  h  h
#                                      r  i  t  w  .  .  .  .     .  .  .
#                                      .  n  e  i  w  t  s  m     t  u  o
TARGETS: dict[str, dict[str, str]] = {
    "a team token of the member": {
        "show": "                      A  A  A  A  A  A  N  A  A  A  N  N",
        "update": "                    A  F  F  F  A  A  N  A  F  F  N  N",
        "rotate": "                    A  F  F  F  A  A  N  F  F  F  N  N",
        "regenerate": "                A  F  F  F  A  A  N  F  F  F  N  N",
        "set scopes": "                A  F  F  F  A  A  N  A  F  F  N  N",
        "revoke": "                    A  F  F  F  A  A  N  A  F  F  N  N",
        "revoke, by policy": "         A  A  A  A  A  A  N  A  F  F  N  N",
        "delete": "                    A  F  F  F  A  A  N  F  F  F  N  N",
        "delete, by policy": "         A  A  A  A  A  A  N  F  F  F  N  N",
    },
    "a personal token of the member": {
        "show": "                      A  A  N  N  A  N  N  N  N  N  N  N",
        "update": "                    A  F  N  N  A  N  N  N  N  N  N  N",
        "rotate": "                    A  F  N  N  A  N  N  N  N  N  N  N",
        "regenerate": "                A  F  N  N  A  N  N  N  N  N  N  N",
        "set scopes": "                A  F  N  N  A  N  N  N  N  N  N  N",
        "revoke": "                    A  F  N  N  A  N  N  N  N  N  N  N",
        "revoke, by policy": "         A  A  N  N  A  N  N  N  N  N  N  N",
        "delete": "                    A  F  N  N  A  N  N  N  N  N  N  N",
        "delete, by policy": "         A  A  N  N  A  N  N  N  N  N  N  N",
    },
    "an account-wide token of the member": {
        "show": "                      A  A  N  N  A  N  N  N  N  N  N  N",
        "update": "                    A  F  N  N  A  N  N  N  N  N  N  N",
        "rotate": "                    A  F  N  N  A  N  N  N  N  N  N  N",
        "regenerate": "                A  F  N  N  A  N  N  N  N  N  N  N",
        "set scopes": "                A  F  N  N  A  N  N  N  N  N  N  N",
        "revoke": "                    A  F  N  N  A  N  N  N  N  N  N  N",
        "revoke, by policy": "         A  A  N  N  A  N  N  N  N  N  N  N",
        "delete": "                    A  F  N  N  A  N  N  N  N  N  N  N",
        "delete, by policy": "         A  A  N  N  A  N  N  N  N  N  N  N",
    },
    "a token that the member's scoped one made": {
        "show": "                      A  A  A  A  A  A  A  A  A  A  N  N",
        "update": "                    A  F  F  F  A  A  A  A  F  F  N  N",
        "rotate": "                    A  F  F  F  A  A  A  A  F  F  N  N",
        "regenerate": "                A  F  F  F  A  A  A  A  F  F  N  N",
        "set scopes": "                A  F  F  F  A  A  A  A  F  F  N  N",
        "revoke": "                    A  F  F  F  A  A  A  A  F  F  N  N",
        "revoke, by policy": "         A  A  A  A  A  A  A  A  F  F  N  N",
        "delete": "                    A  F  F  F  A  A  A  F  F  F  N  N",
        "delete, by policy": "         A  A  A  A  A  A  A  F  F  F  N  N",
    },
    "a key of lab": {
        "show": "                      A  A  A  A  N  N  N  N  A  A  N  N",
        "update": "                    A  A  A  A  N  N  N  N  F  F  N  N",
        "rotate": "                    A  A  A  A  N  N  N  N  F  F  N  N",
        "regenerate": "                A  A  A  A  N  N  N  N  F  F  N  N",
        "set scopes": "                A  A  A  A  N  N  N  N  F  F  N  N",
        "revoke": "                    A  A  A  A  N  N  N  N  F  F  N  N",
        "revoke, by policy": "         A  A  A  A  N  N  N  N  F  F  N  N",
        "delete": "                    A  A  A  A  N  N  N  N  F  F  N  N",
        "delete, by policy": "         A  A  A  A  N  N  N  N  F  F  N  N",
    },
    "a key of lab that may more than its administrators": {
        "show": "                      A  A  A  A  N  N  N  N  A  A  N  N",
        "update": "                    A  A  A  A  N  N  N  N  F  F  N  N",
        "rotate": "                    A  A  F  F  N  N  N  N  F  F  N  N",
        "regenerate": "                A  A  F  F  N  N  N  N  F  F  N  N",
        "set scopes": "                A  A  A  A  N  N  N  N  F  F  N  N",
        "revoke": "                    A  A  A  A  N  N  N  N  F  F  N  N",
        "revoke, by policy": "         A  A  A  A  N  N  N  N  F  F  N  N",
        "delete": "                    A  A  A  A  N  N  N  N  F  F  N  N",
        "delete, by policy": "         A  A  A  A  N  N  N  N  F  F  N  N",
    },
    "a key of shop": {
        "show": "                      A  A  N  N  N  N  N  N  N  N  N  A",
        "update": "                    A  A  N  N  N  N  N  N  N  N  N  A",
        "rotate": "                    A  A  N  N  N  N  N  N  N  N  N  A",
        "regenerate": "                A  A  N  N  N  N  N  N  N  N  N  A",
        "set scopes": "                A  A  N  N  N  N  N  N  N  N  N  A",
        "revoke": "                    A  A  N  N  N  N  N  N  N  N  N  A",
        "revoke, by policy": "         A  A  N  N  N  N  N  N  N  N  N  A",
        "delete": "                    A  A  N  N  N  N  N  N  N  N  N  A",
        "delete, by policy": "         A  A  N  N  N  N  N  N  N  N  N  A",
    },
    "an organisation token of lab and shop": {
        "show": "                      A  A  A  A  N  N  N  N  A  A  N  A",
        "update": "                    A  A  F  F  N  N  N  N  F  F  N  F",
        "rotate": "                    A  A  F  F  N  N  N  N  F  F  N  F",
        "regenerate": "                A  A  F  F  N  N  N  N  F  F  N  F",
        "set scopes": "                A  A  F  F  N  N  N  N  F  F  N  F",
        "revoke": "                    A  A  F  F  N  N  N  N  F  F  N  F",
        "revoke, by policy": "         A  A  F  F  N  N  N  N  F  F  N  F",
        "delete": "                    A  A  F  F  N  N  N  N  F  F  N  F",
        "delete, by policy": "         A  A  F  F  N  N  N  N  F  F  N  F",
    },
}
MAKINGS: dict[str, str] = {
    "a personal token of one's own": " I  A  F  A  A  F  F  F  F  F  A  F",
    "a team token of lab": "           I  I  A  A  A  A  F  F  F  F  N  N",
    "the same, scoped things:read": "  I  I  A  A  A  A  A  A  F  F  N  N",
    "an account-wide token": "         I  F  F  A  A  F  F  F  F  F  F  F",
    "a token for somebody else": "     A  F  F  F  F  F  F  F  F  F  F  F",
    "a token for nobody there is": "   N  F  F  F  F  F  F  F  F  F  F  F",
    "a key of lab": "                  A  A  A  A  F  F  F  F  F  F  N  N",
    "a key of lab for a *:* role": "   A  A  F  F  F  F  F  F  F  F  N  N",
    "an organisation token": "         A  A  N  N  N  N  N  N  F  F  N  N",
    "attach lab's token to shop": "    A  A  N  N  N  N  N  N  N  F  N  N",
    "attach shop's token to lab": "    A  A  N  N  N  N  N  N  N  N  N  N",
    "detach lab from lab's token": "   A  A  A  A  N  N  N  N  F  F  N  N",
    "delete all of a colleague's": "   A  F  F  F  N  N  N  N  F  F  N  N",
}
ANSWERS: tuple[tuple[type[Exception], str], ...] = ((NotFound, "N"), (Forbidden, "F"), (Invalid, "I"))


@dataclass
class World:
    kit: Kit
    actors: dict[str, Actor] = field(default_factory=dict)

    async def begin(self) -> None:
        kit = self.kit
        roles = {"admin": ["*:*"], "chief": CHIEF, "viewer": ["things:list", "things:read"], "nobody": []}
        await kit.roles.sync_config(ADMIN, roles)
        for org in ("lab", "shop"):
            await kit.orgs.add(ADMIN, org)
        for user, role in ((ROOT, "admin"), (ADA, "nobody"), (MEL, "viewer"), (NED, "viewer"), (SOL, "viewer")):
            await kit.users.add(ADMIN, user, role)
        for user, role in ((ADA, "chief"), (MEL, "viewer"), (NED, "viewer")):
            await kit.users.add(ADMIN, user, role, org="lab")
        await kit.users.add(ADMIN, "gus@example.org", "chief", org="shop")
        read, manage = ["things:read"], ["things:read", "patgate.tokens:list", "patgate.tokens:update"]
        self.actors = {"operator": ADMIN}
        for name, made in {
            "admin": await kit.mint(ROOT, "t"),
            "chief team": await kit.mint(ADA, "t", org="lab"),
            "chief wide": await kit.mint(ADA, "t", reach=Reach.ACCOUNT),
            "member wide": await kit.mint(MEL, "t", reach=Reach.ACCOUNT),
            "member team": await kit.mint(MEL, "t", org="lab"),
            "member scoped": await kit.mint(MEL, "t", org="lab", scopes=read),
            "member manager": await kit.mint(MEL, "t", org="lab", scopes=manage),
            "key": await kit.keys.create(ADMIN, KeyRequest(name="k", org="lab", role="chief")),
            "org token": await self.org_token({"lab": CHIEF, "shop": read}),
            "other user": await kit.mint(SOL, "t"),
            "other org": await kit.mint("gus@example.org", "t", org="shop"),
        }.items():
            self.actors[name] = kit.acting(made)

    async def org_token(self, grants: dict[str, tuple[str, ...] | list[str]]) -> Created:
        return await self.kit.keys.create(ADMIN, KeyRequest(name="o", grants=grants))

    async def target(self, what: str) -> str:
        """A new token of this kind."""
        kit = self.kit
        read = ["things:read"]
        if what == "a token that the member's scoped one made":
            new = TokenRequest(name="t", org="lab", scopes=read)
            return (await kit.tokens.create(self.actors["member scoped"], new)).view.id
        made = {
            "a team token of the member": lambda: kit.mint(MEL, "t", org="lab"),
            "a personal token of the member": lambda: kit.mint(MEL, "t"),
            "an account-wide token of the member": lambda: kit.mint(MEL, "t", reach=Reach.ACCOUNT),
            "a key of lab": lambda: kit.keys.create(ADMIN, KeyRequest(name="k", org="lab", role="viewer")),
            "a key of lab that may more than its administrators": lambda: kit.keys.create(
                ADMIN, KeyRequest(name="k", org="lab", role="admin")
            ),
            "a key of shop": lambda: kit.keys.create(ADMIN, KeyRequest(name="k", org="shop", role="viewer")),
            "an organisation token of lab and shop": lambda: self.org_token({"lab": read, "shop": read}),
        }
        return (await made[what]()).view.id

    async def do(self, verb: str, actor: Actor, token: str) -> None:
        tokens = self.kit.tokens
        verb, _, by_policy = verb.partition(", ")
        if by_policy:
            self.kit.policy = TokenPolicy(admin_rights=frozenset(AdminRight))
        if verb == "regenerate":
            await tokens.revoke(ADMIN, token)
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "show": lambda: self.kit.tokens.show(actor, token),
            "update": lambda: self.kit.tokens.update(actor, token, name="new"),
            "rotate": lambda: self.kit.tokens.rotate(actor, token),
            "regenerate": lambda: self.kit.tokens.regenerate(actor, token, expires=60.0),
            "set scopes": lambda: self.kit.tokens.set_scopes(actor, token, ["things:read"]),
            "revoke": lambda: self.kit.tokens.revoke(actor, token),
            "delete": lambda: self.kit.tokens.delete(actor, token),
        }
        try:
            await work[verb]()
        finally:
            self.kit.policy = TokenPolicy()

    async def make(self, what: str, actor: Actor) -> None:
        kit, read = self.kit, ["things:read"]
        mine = {
            "a personal token of one's own": TokenRequest(name="t"),
            "a team token of lab": TokenRequest(name="t", org="lab"),
            "the same, scoped things:read": TokenRequest(name="t", org="lab", scopes=read),
            "an account-wide token": TokenRequest(name="t", reach=Reach.ACCOUNT),
            "a token for somebody else": TokenRequest(name="t", user=NED, scopes=read),
            "a token for nobody there is": TokenRequest(name="t", user="nobody@example.org", scopes=read),
        }
        keys = {
            "a key of lab": KeyRequest(name="k", org="lab", role="viewer"),
            "a key of lab for a *:* role": KeyRequest(name="k", org="lab", role="admin"),
            "an organisation token": KeyRequest(name="o", grants={"lab": read, "shop": read}),
        }
        if what in mine:
            await kit.tokens.create(actor, mine[what])
        elif what in keys:
            await kit.keys.create(actor, keys[what])
        elif what == "attach lab's token to shop":
            await kit.keys.attach(actor, (await self.org_token({"lab": read})).view.id, "shop", read)
        elif what == "attach shop's token to lab":
            await kit.keys.attach(actor, (await self.org_token({"shop": read})).view.id, "lab", read)
        elif what == "detach lab from lab's token":
            await kit.keys.detach(actor, (await self.org_token({"lab": read, "shop": read})).view.id, "lab")
        else:
            await kit.mint(NED, "t", org="lab")
            await kit.tokens.delete_all(actor, NED)


async def answered(work: Awaitable[None]) -> tuple[str, str]:
    """The letter of a result, and its message."""
    try:
        await work
    except (NotFound, Forbidden, Invalid) as error:
        return next(letter for kind, letter in ANSWERS if isinstance(error, kind)), str(error)
    return "A", ""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as kit:
        world = World(kit)
        await world.begin()
        yield world


def test_the_tables_have_no_gaps() -> None:
    first = next(iter(TARGETS.values()))
    for table in (MAKINGS, *TARGETS.values()):
        assert {len(letters.split()) for letters in table.values()} == {len(ACTORS)}
    assert all(list(table) == list(first) for table in TARGETS.values())


async def test_who_may_do_what_with_which_token(world: World) -> None:
    unknown = {name: await answered(world.do("show", actor, "A" * 12)) for name, actor in world.actors.items()}
    assert {letter for letter, _ in unknown.values()} == {"N"}
    for what, table in TARGETS.items():
        for verb, expected in table.items():
            letters, token = [], await world.target(what)
            for name, actor in world.actors.items():
                answer = await answered(world.do(verb, actor, token))
                letters.append(answer[0])
                if answer[0] == "A" and verb != "show":
                    token = await world.target(what)
                assert answer[0] != "N" or answer == unknown[name], "in the words for a token that there is not"
            assert letters == expected.split(), f"{verb} {what}"


async def test_who_may_make_what(world: World) -> None:
    for what, expected in MAKINGS.items():
        letters = [(await answered(world.make(what, actor)))[0] for actor in world.actors.values()]
        assert letters == expected.split(), what


LISTS = {
    "operator": "admin chief key1 key2 mel-personal mel-team mel-wide org sol",
    "admin": "admin chief key1 key2 mel-personal mel-team mel-wide org sol",
    "chief": "chief key1 mel-team org",
    "mel-wide": "mel-personal mel-team mel-wide",
    "mel-team": "mel-team",
    "mel-personal": "mel-personal",
    "sol": "sol",
    "key1": "chief key1 mel-team org",
    "key2": "",
    "org": "key1 org",
}


async def test_a_list_shows_what_may_be_shown_and_an_organisation_token_only_where_it_concerns_one(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as kit:
        world = World(kit)
        await world.begin()
        for name, actor in world.actors.items():
            if name != "operator":
                assert actor.credential is not None
                await kit.tokens.delete(ADMIN, actor.credential.token_id)
        made = {
            "admin": await kit.mint(ROOT, "t"),
            "chief": await kit.mint(ADA, "t", org="lab"),
            "mel-wide": await kit.mint(MEL, "t", reach=Reach.ACCOUNT),
            "mel-team": await kit.mint(MEL, "t", org="lab"),
            "mel-personal": await kit.mint(MEL, "t"),
            "sol": await kit.mint(SOL, "t"),
            "key1": await kit.keys.create(ADMIN, KeyRequest(name="k", org="lab", role="chief")),
            "key2": await kit.keys.create(ADMIN, KeyRequest(name="k", org="shop", role="viewer")),
            "org": await world.org_token({"lab": ["patgate.keys:list"], "shop": ["things:read"]}),
        }
        names = {one.view.id: name for name, one in made.items()}
        for name, expected in LISTS.items():
            actor = ADMIN if name == "operator" else kit.acting(made[name])
            page = await kit.tokens.list(actor)
            assert sorted(names[view.id] for view in page.items) == expected.split(), name
            for view in page.items:
                assert await kit.tokens.show(actor, view.id) == view
            for view in (view for view in page.items if view.orgs is not None):
                seen = ["lab", "shop"] if name in ("operator", "admin") else ["lab"]
                assert [org.org_name for org in view.orgs or ()] == seen, name
        for org in ("shop", "nowhere"):
            with pytest.raises(NotFound, match="there is no organisation with this name or id"):
                await kit.tokens.list(kit.acting(made["chief"]), TokenFilter(org=org))
        for user in (SOL, "nobody@example.org"):
            with pytest.raises(NotFound, match="there is no user with this email or id"):
                await kit.tokens.list(kit.acting(made["chief"]), TokenFilter(user=user))
        for token in (made["sol"].view.id, "A" * 12):
            with pytest.raises(NotFound, match="there is no token with this id or prefix"):
                await kit.tokens.list(kit.acting(made["chief"]), TokenFilter(parent=token))
