"""Tokens that reach several organisations: the rows that the store returns for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus
from proxy.store import tables
from proxy.store.change import Change
from proxy.store.records import OrgGrantRow
from tests.contract.kit import ADMIN, Kit, opened

ANN = "ann@example.org"


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """Ann is an editor in the account and a viewer of ``team``, and is not a member of ``other``."""
    async with opened(tmp_path) as kit:
        await kit.basics()
        await kit.orgs.add(ADMIN, "other")
        yield kit


async def attach(kit: Kit, token_id: str, org: str, permissions: Sequence[str] | None) -> None:
    org_id = (await kit.orgs.show(ADMIN, org)).id
    values = {"token_id": token_id, "org_id": org_id, "created_at": 0.0}
    async with kit.store.change(ADMIN) as change:
        await change.connection.execute(tables.token_orgs.insert().values(**values, permissions=permissions))
        record(change, token_id)


def record(change: Change, token_id: str) -> None:
    change.touched(f"token:{token_id}")
    change.audit("account.key.mint", target_kind="token", target_id=token_id)


async def test_an_account_wide_token_is_found_with_every_membership_of_its_owner(kit: Kit) -> None:
    ann = (await kit.users.show(ADMIN, ANN)).id
    row = await kit.insert(Kind.PAT, Reach.ACCOUNT, user_id=ann)
    ordinary = (await kit.mint(ANN, "t", org="team")).view.id
    team, other = (await kit.orgs.show(ADMIN, "team")).id, (await kit.orgs.show(ADMIN, "other")).id
    alone = await kit.store.resolve([row.id])
    assert alone.tokens[row.id].orgs == (
        OrgGrantRow(
            org_id=team, org_name="team", status="active", role="viewer", permissions=["things:list", "things:read"]
        ),
    )
    assert (alone.tokens[row.id].role, alone.tokens[row.id].permissions) == ("editor", ["things:*"])
    await kit.users.add(ADMIN, ANN, "admin", org="other")
    found = await kit.store.resolve([row.id, ordinary, "unknown"])
    assert {org.org_id: org.role for org in found.tokens[row.id].orgs} == {team: "viewer", other: "admin"}
    assert found.tokens[ordinary].orgs == ()
    assert set(found.tokens) == {row.id, ordinary}


async def test_an_organisation_token_is_found_with_what_it_is_attached_to(kit: Kit) -> None:
    row = await kit.insert(Kind.KEY, Reach.ORGS)
    team, other = (await kit.orgs.show(ADMIN, "team")).id, (await kit.orgs.show(ADMIN, "other")).id
    assert (await kit.store.resolve([row.id])).tokens[row.id].orgs == ()
    await attach(kit, row.id, "team", ["things:read"])
    await attach(kit, row.id, "other", None)
    await kit.orgs.suspend(ADMIN, "other")
    found = {org.org_id: org for org in (await kit.store.resolve([row.id])).tokens[row.id].orgs}
    assert found == {
        team: OrgGrantRow(org_id=team, org_name="team", status="active", role=None, permissions=["things:read"]),
        other: OrgGrantRow(org_id=other, org_name="other", status="suspended", role=None, permissions=None),
    }


async def test_a_transaction_reads_of_tokens_what_it_has_written_itself(kit: Kit) -> None:
    made = (await kit.mint(ANN, "t", org="team")).view
    epoch = await kit.store.epoch()
    async with kit.store.read() as rows:
        assert await rows.grant_rows([made.id]) == await kit.store.resolve([made.id])
    async with kit.store.change(ADMIN) as change:
        await change.tokens.revoke(made.id, change.now)
        mine = await change.grant_rows([made.id, "unknown", "other"])
        assert (mine.as_of, mine.tokens[made.id].status) == (epoch, TokenStatus.REVOKED)
        assert (await kit.store.resolve([made.id])).tokens[made.id].status is TokenStatus.ACTIVE
        record(change, made.id)
