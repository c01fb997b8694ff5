"""A page of tokens equals sorting and filtering all of them in memory, for every combination of filters."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import sqlalchemy as sa

from proxy.core.kinds import Kind, Reach
from proxy.core.model import TokenStatus, UserStatus
from proxy.store import tables
from proxy.store.change import Change
from proxy.store.records import Cursor, OrgRow, TokenEntry, TokenRow, UserRow
from proxy.store.tokens.queries import TokenListQuery, Within
from proxy.store.tokens.tokens import TokensTable
from proxy.store.tokens.usage import Use
from tests.contract.kit import ADMIN, START, Kit, opened

pytestmark = pytest.mark.usefixtures("dialect")

ORGS = ("org_a", "org_b")
USERS = ("usr_a", "usr_b", "usr_gone")
NOW = START + 1000
COUNT = 160


def _rows(rng: random.Random) -> Iterator[TokenRow]:
    for number in range(COUNT):
        key = number % 8 == 0
        reach = rng.choice((Reach.ORG, Reach.ORGS)) if key else rng.choice((Reach.PERSONAL, Reach.ORG, Reach.ACCOUNT))
        yield TokenRow(
            id=f"{rng.getrandbits(48):012x}",
            prefix=f"acme_pat_{number}",
            kind=Kind.KEY if key else Kind.PAT,
            reach=reach,
            name=f"token {number}",
            description="",
            user_id=None if key else rng.choice(USERS),
            org_id=rng.choice(ORGS) if reach is Reach.ORG else None,
            role=None,
            scopes=None,
            status=TokenStatus.ACTIVE,
            hash="h",
            digest=None,
            created_by_kind="system",
            created_by="test",
            # Some at the same moment: then the id decides.
            created_at=START + rng.randrange(COUNT // 3),
            updated_at=START,
            parent_id=None,
            expires_at=rng.choice((None, NOW - 500, NOW - 1, NOW, NOW + 1, NOW + 500)),
        )


async def _fill(change: Change, rng: random.Random) -> dict[str, set[str]]:
    """Two organisations, three users of whom one will be removed, and their tokens; returns the attachments."""
    for org in ORGS:
        await change.orgs.add(
            OrgRow(id=org, name=org, display_name=org, status="active", created_at=START, updated_at=START)
        )
    for user in USERS:
        await change.users.add(
            UserRow(
                id=user,
                email=user,
                email_key=user,
                name="",
                role="",
                status=UserStatus.ACTIVE,
                created_at=START,
                updated_at=START,
            )
        )
    attached: dict[str, set[str]] = {}
    made: list[str] = []
    for row in _rows(rng):
        parent = rng.choice(made) if made and rng.random() < 0.3 else None
        await change.tokens.add(replace(row, parent_id=parent))
        made.append(row.id)
        if row.reach is Reach.ORGS:
            attached[row.id] = set(rng.sample(ORGS, rng.randrange(1, 3)))
            for org in attached[row.id]:
                await change.connection.execute(
                    tables.token_orgs.insert().values(token_id=row.id, org_id=org, created_at=START)
                )
        if rng.random() < 0.1:
            await change.tokens.revoke(row.id, START)
    await change.users.set_status("usr_gone", UserStatus.REMOVED, START)
    change.touched("user:usr_gone")
    change.audit("test", target_kind="test", target_id="")
    return attached


def _status(entry: TokenEntry) -> TokenStatus:
    row = entry.token
    if row.status is TokenStatus.REVOKED or entry.user_status is UserStatus.REMOVED:
        return TokenStatus.REVOKED
    return TokenStatus.EXPIRED if row.expires_at is not None and row.expires_at <= NOW else TokenStatus.ACTIVE


def _within(entry: TokenEntry, within: Within, attached: dict[str, set[str]], made_by: dict[str, str | None]) -> bool:
    row = entry.token
    ancestors: set[str | None] = {row.id}
    parent = row.parent_id
    while parent is not None:
        ancestors.add(parent)
        parent = made_by[parent]
    return (
        (within.user_id is None or row.user_id == within.user_id)
        and (within.org_id is None or row.org_id == within.org_id or within.org_id in attached.get(row.id, ()))
        and (within.reach is None or row.reach is within.reach)
        and (within.lineage is None or within.lineage in ancestors)
    )


def _expected(
    every: list[TokenEntry], query: TokenListQuery, attached: dict[str, set[str]], made_by: dict[str, str | None]
) -> list[str]:
    def fits(entry: TokenEntry) -> bool:
        expires = entry.token.expires_at
        soon = query.expires_by is None or (
            expires is not None and expires <= query.expires_by and _status(entry) is TokenStatus.ACTIVE
        )
        return (
            soon
            and (query.kind is None or entry.token.kind is query.kind)
            and (query.status is None or _status(entry) is query.status)
            and any(_within(entry, within, attached, made_by) for within in query.within)
        )

    found = [entry for entry in every if fits(entry)]
    place: Callable[[TokenEntry], tuple[float, str]] = lambda entry: (  # noqa: E731
        query.position(entry).created_at,
        entry.token.id,
    )
    return [entry.token.id for entry in sorted(found, key=place)]


async def _all_pages(tokens: TokensTable, query: TokenListQuery, limit: int) -> list[str]:
    found: list[str] = []
    after: Cursor | None = None
    while True:
        page = await tokens.page(query, after=after, limit=limit, now=NOW)
        found += [entry.token.id for entry in page]
        if len(page) < limit:
            return found
        after = query.position(page[-1])


async def _filled(kit: Kit) -> dict[str, set[str]]:
    async with kit.store.change(ADMIN, START) as change:
        return await _fill(change, random.Random(7))


async def test_pages_are_what_filtering_all_tokens_gives(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        attached = await _filled(kit)
        for filed in (0, 20):
            # However much of the filing has been done.
            async with kit.store.change(ADMIN, NOW) as change:
                await change.tokens.file_expired(NOW, filed)
                await change.connection.commit()
            async with kit.store.read() as rows:
                every = await rows.tokens.page(TokenListQuery(), after=None, limit=COUNT, now=NOW)
                assert len(every) == COUNT
                made_by = {entry.token.id: entry.token.parent_id for entry in every}
                root = next(entry.token.parent_id for entry in every if entry.token.parent_id is not None)
                withins = (
                    (Within(),),
                    (Within(user_id="usr_a"),),
                    (Within(user_id="usr_gone"),),
                    (Within(org_id="org_a"),),
                    (Within(user_id="usr_b", org_id="org_b"),),
                    (Within(user_id="usr_a", reach=Reach.PERSONAL),),
                    (Within(lineage=root),),
                    (Within(user_id="usr_a"), Within(org_id="org_a"), Within(lineage=root)),
                )
                ends = (None, NOW + 400, NOW + 600)
                for within, kind, status, by in product(withins, (None, *Kind), (None, *TokenStatus), ends):
                    query = TokenListQuery(within=within, kind=kind, status=status, expires_by=by)
                    assert await _all_pages(rows.tokens, query, 23) == _expected(every, query, attached, made_by), query


async def test_an_empty_within_selects_no_token(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _filled(kit)
        async with kit.store.read() as rows:
            assert await rows.tokens.page(TokenListQuery(within=()), after=None, limit=10, now=NOW) == []


async def test_a_clock_that_is_set_back_hides_no_token(tmp_path: Path) -> None:
    """A token that was listed as expired by a clock running ahead is still found as active."""
    async with opened(tmp_path) as kit:
        await _filled(kit)
        async with kit.store.change(ADMIN, NOW) as change:
            await change.tokens.file_expired(NOW + 10_000, COUNT)
            await change.connection.commit()
        async with kit.store.read() as rows:
            every = await rows.tokens.page(TokenListQuery(), after=None, limit=COUNT, now=NOW)
            for status in TokenStatus:
                wanted = {entry.token.id for entry in every if _status(entry) is status}
                assert set(await _all_pages(rows.tokens, TokenListQuery(status=status), 50)) == wanted
            for user in ("usr_a", "usr_b"):
                mine = [entry for entry in every if entry.token.user_id == user]
                active = sum(_status(entry) is TokenStatus.ACTIVE for entry in mine)
                assert await rows.tokens.count_active(user, NOW) == active
        async with kit.store.change(ADMIN, NOW) as change:
            assert await change.tokens.file_expired(NOW, COUNT)
            assert not await change.tokens.file_expired(NOW, COUNT)
            await change.connection.commit()


async def test_expired_tokens_are_listed_as_such_in_batches_and_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _filled(kit)
        filed = []
        async with kit.store.change(ADMIN, NOW) as change:
            while done := await change.tokens.file_expired(NOW, 15):
                filed.append(done)
            await change.connection.commit()
            due = sa.select(sa.func.count()).where(tables.tokens.c.listed_as == TokenStatus.EXPIRED.value)
            assert sum(filed) == (await change.connection.execute(due)).scalar_one() > 30
        assert set(filed[:-1]) == {15}


async def test_pages_continue_correctly_while_tokens_are_added_and_deleted(tmp_path: Path) -> None:
    """No token that exists throughout is missed or listed twice."""
    async with opened(tmp_path) as kit:
        await _filled(kit)
        query = TokenListQuery()
        async with kit.store.change(ADMIN, NOW) as change:
            first = await change.tokens.page(query, after=None, limit=100, now=NOW)
            await change.tokens.add(replace(first[0].token, id="000000000000", created_at=START))
            await change.tokens.delete(first[99].token.id)
            rest = await change.tokens.page(query, after=query.position(first[-1]), limit=COUNT, now=NOW)
            assert len(rest) == COUNT - 100
            assert not {entry.token.id for entry in rest} & {entry.token.id for entry in first}
            await change.connection.rollback()


async def test_unused_tokens_are_those_neither_created_nor_used_since(tmp_path: Path) -> None:
    async with opened(tmp_path) as kit:
        await _filled(kit)
        since = START + COUNT // 4
        rng = random.Random(3)
        async with kit.store.read() as rows:
            every = await rows.tokens.page(TokenListQuery(), after=None, limit=COUNT, now=NOW)
        used = [
            Use(token_id=entry.token.id, count=1, at=entry.token.created_at + rng.randrange(COUNT), ip="")
            for entry in every
            if rng.random() < 0.5
        ]
        await kit.store.add_uses(used)
        last = {entry.token.id: entry.token.created_at for entry in every} | {use.token_id: use.at for use in used}
        unused = [entry for entry in every if last[entry.token.id] < since]
        assert COUNT - 20 > len(unused) > 20
        async with kit.store.read() as rows:
            for user, status in product((None, "usr_a"), (None, *TokenStatus)):
                query = TokenListQuery(within=(Within(user_id=user),), status=status, unused_since=since)
                wanted = [
                    entry.token.id
                    for entry in unused
                    if user in (None, entry.token.user_id) and status in (None, _status(entry))
                ]
                assert await _all_pages(rows.tokens, query, 7) == wanted
            but = TokenListQuery(unused_since=since, but=unused[0].token.id)
            assert await _all_pages(rows.tokens, but, 7) == [entry.token.id for entry in unused[1:]]
