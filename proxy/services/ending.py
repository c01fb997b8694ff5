"""Tokens that end: what becomes of those that they made, and all of an owner's at once.

Rules:

1. Whoever ends a token is told how many of those that it made still work: they are contained in it, and not in its end.
2. With them, they end as far as whoever asks may end each of them; the others are counted as still working.
3. All of an owner's are deleted in one transaction, each with its own event. There may be thousands, and everybody
   else's change waits meanwhile: so they are looked at one by one, and written together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from proxy.core.model import TokenStatus
from proxy.services import custody, handling
from proxy.services.access import Operation, Standing
from proxy.services.custody import Ruling, Verb
from proxy.services.handling import Found
from proxy.services.policies import Policies
from proxy.store.change import Change
from proxy.store.listing import TokenQuery, Within
from proxy.store.records import TokenEntry, TokenRow

_AT_ONCE = 500


async def descendants(
    change: Change, asker: Standing, policies: Policies, found: Found, *, revoke: bool
) -> tuple[str, ...]:
    """End what this token made, where asked, and say what of it still works."""
    ended: list[str] = []
    for entry in await change.tokens.made_by(found.row.id) if revoke else ():
        one = await handling.at_hand(change, asker, entry)
        if one.status(change.now) is not TokenStatus.ACTIVE:
            continue
        if await handling.judge(change, asker, policies, one, Verb.REVOKE) is Ruling.ALLOWED:
            ended.append(one.row.id)
            handling.record_found(change, "revoke", one, {"with": found.row.prefix})
    await change.tokens.revoke_many(ended, change.now)
    left = await change.tokens.count_made_by(found.row.id, change.now)
    if not left:
        return ()
    return (f"{left} {'token' if left == 1 else 'tokens'} that this one made still {'works' if left == 1 else 'work'}",)


async def all_of(change: Change, asker: Standing, policies: Policies, user_id: str, *, keep: str | None) -> int:
    """Delete the tokens of this owner that ``asker`` may delete, all but ``keep``; how many there were.

    Raises Forbidden where there are some in sight, of somebody else, and none that may be deleted.
    """
    deleted: list[TokenRow] = []
    refused = Ruling.ALLOWED
    async for entry in _each(change, asker, user_id):
        one = await handling.at_hand(change, asker, entry)
        if one.row.id == keep:
            continue
        ruling = await handling.judge(change, asker, policies, one, Verb.DELETE)
        if ruling is Ruling.ALLOWED:
            handling.record_found(change, "delete", one)
            deleted.append(one.row)
        else:
            refused = ruling
    if not deleted and refused is not Ruling.ALLOWED and user_id != asker.user_id:
        custody.require(refused)
    await change.tokens.delete_many(deleted)
    return len(deleted)


async def _each(change: Change, asker: Standing, user_id: str) -> AsyncIterator[TokenEntry]:
    sights = custody.sight(asker) + custody.sight(asker, Operation.DELETE)
    query = TokenQuery(within=custody.narrowed(sights, Within(user_id=user_id)))
    after = None
    while True:
        page = await change.tokens.page(query, after=after, limit=_AT_ONCE, now=change.now)
        for entry in page:
            yield entry
        if len(page) < _AT_ONCE:
            return
        after = query.position(page[-1])
