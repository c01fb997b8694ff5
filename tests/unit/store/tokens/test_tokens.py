"""Deleting or revoking many tokens at once has the same result as one after the other."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus
from proxy.store.records import TokenEntry, TokenRow
from proxy.store.tokens.queries import TokenListQuery, Within
from proxy.store.tokens.tokens import TokensTable
from tests.contract.kit import ADMIN, START, opened

pytestmark = pytest.mark.usefixtures("dialect")

COUNT = 60


def _forest(rng: random.Random) -> list[TokenRow]:
    """Tokens of which most were minted by an earlier one."""
    rows: list[TokenRow] = []
    for number in range(COUNT):
        token_id = f"{number:012d}"
        parent = rng.choice(rows).id if rows and rng.random() < 0.8 else None
        rows.append(
            TokenRow(
                id=token_id,
                prefix=f"acme_pat_{token_id}",
                kind=Kind.PAT,
                reach=Reach.PERSONAL,
                name="n",
                description="",
                user_id=None,
                org_id=None,
                role=None,
                scopes=None,
                status=TokenStatus.ACTIVE,
                hash="h",
                digest=None,
                parent_id=parent,
                created_by_kind="system",
                created_by="test",
                created_at=START + number,
                updated_at=START,
                expires_at=rng.choice((None, START + 1, START + 1000)),
            )
        )
    return rows


async def _all(tokens: TokensTable) -> list[TokenEntry]:
    return await tokens.page(TokenListQuery(), after=None, limit=COUNT, now=START)


async def test_remaining_tokens_get_the_same_parents_however_the_others_were_deleted(tmp_path: Path) -> None:
    for seed in range(5):
        rng = random.Random(seed)
        rows = _forest(rng)
        doomed = [row for row in rows if rng.random() < 0.5]
        found = []
        async with opened(tmp_path) as kit:
            for together in (True, False):
                async with kit.store.change(ADMIN, START) as change:
                    for row in rows:
                        await change.tokens.add(row)
                    if together:
                        await change.tokens.delete_many(doomed)
                    else:
                        for row in doomed:
                            await change.tokens.delete(row.id)
                    found.append({entry.token.id: entry.token.parent_id for entry in await _all(change.tokens)})
                    await change.connection.rollback()
        assert found[0] == found[1]
        assert len(found[0]) == COUNT - len(doomed)


async def test_tokens_revoked_together_are_counted_and_listed_as_such(tmp_path: Path) -> None:
    rows = _forest(random.Random(9))
    root = rows[0].id
    now = START + 10
    async with opened(tmp_path) as kit, kit.store.change(ADMIN, START) as change:
        for row in rows:
            await change.tokens.add(row)
        made = [entry.token for entry in await change.tokens.made_by(root, 0.0, after=None, limit=1000)]
        living = [row.id for row in made if row.expires_at is None or row.expires_at > now]
        assert len(made) > len(living) > 3
        assert await change.tokens.count_made_by(root, now) == len(living)
        await change.tokens.revoke_many(living[1:], now)
        assert await change.tokens.count_made_by(root, now) == 1
        query = TokenListQuery(within=(Within(lineage=root),), status=TokenStatus.REVOKED)
        revoked = await change.tokens.page(query, after=None, limit=COUNT, now=now)
        assert {entry.token.id for entry in revoked} == set(living[1:])
        assert {entry.token.revoked_at for entry in revoked} == {now}
        await change.connection.rollback()
