"""Keys of one organisation and organisation tokens: creation, attachment, reach and seats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.errors import Conflict, Forbidden, Invalid, NotFound
from proxy.core.kinds import Reach
from proxy.core.model import Actor, Grant, RefusedGrant
from proxy.core.reasons import Reason
from proxy.services.policy.model import TokenPolicy
from proxy.services.tokens.issuance import KeyRequest, TokenRequest
from tests.contract.kit import ADMIN, START, Kit, opened

ANN = "ann@example.org"
READ = ["things:read"]


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """Ann manages the keys of ``team`` and ``other``, where she has all permissions on ``things``."""
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.orgs.add(ADMIN, "other")
        await kit.roles.set(ADMIN, "keeper", ["patgate.keys:*", "things:*"])
        await kit.users.set_role(ADMIN, ANN, "keeper", "team")
        await kit.users.add(ADMIN, ANN, "keeper", org="other")
        yield kit


async def ann(kit: Kit, **what: object) -> Actor:
    return kit.acting(await kit.mint(ANN, "t", reach=Reach.ACCOUNT, **what))  # type: ignore[arg-type]


async def test_a_key_has_its_role_and_outlives_its_creator(kit: Kit) -> None:
    made = await kit.keys.create(await ann(kit), KeyRequest(name="ci", org="team", role="viewer"))
    assert made.value.startswith("acme_key_")
    await kit.users.remove(ADMIN, ANN)
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant)
    assert (grant.role, grant.org_name, grant.user_id, grant.email) == ("viewer", "team", "", "")
    assert (made.view.user_id, made.view.role, made.view.orgs) == (None, "viewer", None)


async def test_an_organisation_token_has_its_permissions_in_each_and_leaves_an_event_in_each(kit: Kit) -> None:
    grants = {"team": READ, "other": ["things:*"]}
    made = await kit.keys.create(await ann(kit), KeyRequest(name="o", grants=grants))
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant) and grant.orgs is not None
    assert {org.org_name: org.permissions.texts for org in grant.orgs.values()} == {
        "team": ("things:read",),
        "other": ("things:*",),
    }
    async with kit.store.read() as rows:
        events = [event for event in await rows.log.newest(limit=9) if event.action == "account.key.mint"]
    assert {event.org_id for event in events} == {org.org_id for org in made.view.orgs or ()}
    assert {(event.actor_id, event.actor_name, event.target_id) for event in events} == {
        (made.view.created_by, "t", made.view.id)
    }


@pytest.mark.parametrize(
    ("new", "fields"),
    [
        (KeyRequest(name=" "), ["name", "org", "role"]),
        (KeyRequest(name="k", org="team"), ["role"]),
        (KeyRequest(name="k", org="team", role="viewer", grants={"team": READ}), ["org", "role"]),
        (KeyRequest(name="k", grants={}), ["grants"]),
        (
            KeyRequest(name="k", grants={"team": [], "other": ["x"]}, expires=-1.0),
            ["expires", "grants.team", "grants.o"],
        ),
        (KeyRequest(name="k", org="team", role="no such"), ["role"]),
    ],
)
async def test_every_invalid_field_is_named(kit: Kit, new: KeyRequest, fields: list[str]) -> None:
    with pytest.raises(Invalid) as raised:
        await kit.keys.create(ADMIN, new)
    found = [field for field, _ in raised.value.errors]
    assert all(any(one.startswith(field) for one in found) for field in fields), found


async def test_a_keys_permissions_are_within_the_callers_in_each_organisation(kit: Kit) -> None:
    actor = await ann(kit)
    with pytest.raises(Forbidden) as raised:
        await kit.keys.create(actor, KeyRequest(name="k", org="team", role="admin"))
    assert raised.value.errors[0][0] == "role"
    with pytest.raises(Forbidden) as raised:
        await kit.keys.create(actor, KeyRequest(name="k", grants={"team": READ, "other": ["things:read", "*:*"]}))
    assert [field for field, _ in raised.value.errors] == ["grants.other"]
    await kit.users.set_role(ADMIN, ANN, "viewer", "other")
    with pytest.raises(Forbidden, match="needs the permission"):
        await kit.keys.create(actor, KeyRequest(name="k", grants={"team": READ, "other": READ}))
    with pytest.raises(NotFound, match="no organisation"):
        await kit.keys.create(actor, KeyRequest(name="k", grants={"team": READ, "nowhere": READ}))


async def test_a_key_is_contained_in_the_token_that_makes_it(kit: Kit) -> None:
    short = await ann(kit, expires=100.0)
    for expires in (None, 101.0):
        with pytest.raises(Forbidden) as raised:
            await kit.keys.create(short, KeyRequest(name="k", org="team", role="viewer", expires=expires))
        assert raised.value.errors[0][0] == "expires"
    made = await kit.keys.create(short, KeyRequest(name="k", org="team", role="viewer", expires=100.0))
    assert made.view.expires_at == START + 100
    scoped = await ann(kit, scopes=["patgate.keys:create", "things:read", "things:list"])
    with pytest.raises(Forbidden) as raised:
        await kit.keys.create(scoped, KeyRequest(name="k", org="team", role="viewer"))
    assert raised.value.errors[0][0] == "scopes"
    await kit.keys.create(scoped, KeyRequest(name="k", org="team", role="viewer", scopes=READ))
    with pytest.raises(Forbidden):
        await kit.keys.create(scoped, KeyRequest(name="k", grants={"team": ["things:update"]}))
    await kit.keys.create(scoped, KeyRequest(name="k", grants={"team": READ}))


async def test_each_organisation_has_a_seat_limit_for_active_organisation_tokens(kit: Kit) -> None:
    kit.policy = TokenPolicy(org_tokens_per_org=1)
    first = await kit.keys.create(ADMIN, KeyRequest(name="a", grants={"team": READ}))
    await kit.keys.create(ADMIN, KeyRequest(name="k", org="team", role="viewer"))
    with pytest.raises(Conflict, match=r"\(1\)"):
        await kit.keys.create(ADMIN, KeyRequest(name="b", grants={"other": READ, "team": READ}))
    second = await kit.keys.create(ADMIN, KeyRequest(name="b", grants={"other": READ}, expires=50.0))
    with pytest.raises(Conflict, match=r"\(1\)"):
        await kit.keys.attach(ADMIN, second.view.id, "team", READ)
    await kit.tokens.revoke(ADMIN, first.view.id)
    await kit.keys.attach(ADMIN, second.view.id, "team", READ)
    with pytest.raises(Conflict, match=r"\(1\)"):
        await kit.tokens.regenerate(ADMIN, first.view.id)
    kit.clock.now += 50
    await kit.tokens.regenerate(ADMIN, first.view.id)


async def test_attaching_and_detaching_apply_at_once_and_the_last_organisation_stays(kit: Kit) -> None:
    made = await kit.keys.create(ADMIN, KeyRequest(name="o", grants={"team": READ}))
    key = made.view.id
    announced = len(kit.announced)
    await kit.keys.attach(ADMIN, key, "other", READ)
    changed = await kit.keys.attach(ADMIN, key, "other", ["things:*"])
    assert [(org.org_name, org.permissions) for org in changed.view.orgs or ()] == [
        ("other", ("things:*",)),
        ("team", ("things:read",)),
    ]
    await kit.keys.attach(ADMIN, key, "other", ["things:*", "things:*"])
    await kit.keys.detach(ADMIN, key, "team")
    await kit.keys.detach(ADMIN, key, "team")
    assert [keys for _, keys in kit.announced[announced:]] == [(f"token:{key}",)] * 3
    with pytest.raises(Conflict, match="delete the token instead"):
        await kit.keys.detach(ADMIN, key, "other")
    grant = await kit.resolve(made.view.prefix)
    assert isinstance(grant, Grant) and grant.orgs is not None and "team" not in grant.orgs
    one = await kit.keys.create(ADMIN, KeyRequest(name="k", org="team", role="viewer"))
    for work in (kit.keys.attach(ADMIN, one.view.id, "other", READ), kit.keys.detach(ADMIN, one.view.id, "team")):
        with pytest.raises(Conflict, match="only an organisation token"):
            await work
    await kit.orgs.suspend(ADMIN, "team")
    with pytest.raises(Conflict, match="suspended"):
        await kit.keys.attach(ADMIN, key, "team", READ)


async def test_every_organisations_policy_applies_to_the_keys_attached_to_it(kit: Kit) -> None:
    made = await kit.keys.create(ADMIN, KeyRequest(name="o", grants={"team": READ}))
    await kit.policies.set(ADMIN, "other", {"max_lifetime": 3600.0, "forbidden_scopes": ["things:*"]})
    with pytest.raises(Conflict, match="lives longer"):
        await kit.keys.attach(ADMIN, made.view.id, "other", READ)
    with pytest.raises(Invalid) as raised:
        await kit.keys.create(ADMIN, KeyRequest(name="o", grants={"other": ["*:*"], "team": READ}, expires=3601.0))
    assert [field for field, _ in raised.value.errors] == ["expires", "grants.other[0]"]
    capped = await kit.keys.create(ADMIN, KeyRequest(name="o", grants={"other": READ}))
    assert capped.view.expires_at == START + 3600
    with pytest.raises(Invalid) as raised:
        await kit.keys.attach(ADMIN, capped.view.id, "other", ["things:read", "things:*"])
    assert raised.value.errors[0][0] == "permissions[1]"


async def test_the_operations_of_tokens_work_on_keys(kit: Kit) -> None:
    actor = await ann(kit)
    made = await kit.keys.create(actor, KeyRequest(name="k", org="team", role="viewer"))
    rotated = await kit.tokens.rotate(actor, made.view.id)
    assert rotated.value.startswith(f"{made.view.prefix}_") and rotated.value != made.value
    await kit.tokens.revoke(actor, made.view.id)
    verdict = await kit.resolve(made.view.prefix)
    assert isinstance(verdict, RefusedGrant) and verdict.reason is Reason.TOKEN_REVOKED
    await kit.tokens.regenerate(actor, made.view.id, expires=60.0)
    assert (await kit.tokens.set_scopes(actor, made.view.id, READ)).view.scopes == ("things:read",)
    await kit.tokens.delete(actor, made.view.id)
    async with kit.store.read() as rows:
        verbs = [event.action.rpartition(".")[2] for event in await rows.log.newest(limit=6)]
    assert verbs == ["delete", "scopes", "regenerate", "revoke", "rotate", "mint"]


async def test_a_token_attaches_no_key_that_lives_longer_than_itself(kit: Kit) -> None:
    short = await ann(kit, expires=100.0)
    long = (await kit.keys.create(ADMIN, KeyRequest(name="long", grants={"team": READ}))).view.id
    with pytest.raises(Forbidden) as raised:
        await kit.keys.attach(short, long, "other", READ)
    assert [field for field, _ in raised.value.errors] == ["expires"]
    assert [org.org_name for org in (await kit.tokens.show(ADMIN, long)).orgs or ()] == ["team"]
    brief = (await kit.keys.create(ADMIN, KeyRequest(name="brief", grants={"team": READ}, expires=100.0))).view.id
    await kit.keys.attach(short, brief, "other", READ)


async def test_a_token_with_scopes_lists_the_tokens_that_it_created_but_not_the_keys(kit: Kit) -> None:
    """The tokens that it created are its owner's; a key that it created is the organisation's."""
    maker = await ann(kit, scopes=["patgate.keys:create", "things:read"])
    await kit.keys.create(maker, KeyRequest(name="k", grants={"team": READ}))
    own = (await kit.tokens.create(maker, TokenRequest(name="t", scopes=READ))).view.id
    await kit.mint(ANN, "another")
    assert {view.id for view in (await kit.tokens.list(maker)).items} == {maker.id, own}


async def test_a_token_with_reading_scopes_ends_only_tokens_that_it_created(kit: Kit) -> None:
    looking = await ann(kit, scopes=["patgate.tokens:read", "things:read"])
    other = (await kit.mint(ANN, "another")).view.id
    assert (await kit.tokens.show(looking, other)).id == other
    for work in (kit.tokens.revoke(looking, other), kit.tokens.rotate(looking, other)):
        with pytest.raises(Forbidden, match="the scopes of the token presented"):
            await work
    ending = await ann(kit, scopes=["patgate.tokens:update", "things:read"])
    await kit.tokens.revoke(ending, other)
