"""Tokens that end: what becomes of those that they made, and all of an owner's.

Rules:

1. Whoever ends a token is told how many of those that it made still work: they are contained in it, and not in its end.
2. With them, they end as far as whoever asks may end each of them; the others are counted as still working.
3. There may be thousands, and everybody else's change waits meanwhile: ``AT_ONCE`` are looked at in one transaction,
   each with its own event, and written together; then others have their turn. Who asks is judged in each transaction.
   Where one fails, those before it are done, and whoever tries again does the rest.
4. The token presented ends in the last transaction: the others are ended by its authority.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy.core.model import TokenStatus
from proxy.services.caller import AccountOperation, Caller
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import authorization, loading
from proxy.services.tokens.authorization import Ruling, Verb
from proxy.services.tokens.loading import Found
from proxy.store.change import Change
from proxy.store.records import Cursor, TokenEntry, TokenRow
from proxy.store.tokens.queries import TokenListQuery, Within

AT_ONCE: Final = 500


async def still_working(change: Change, found: Found) -> tuple[str, ...]:
    """How many of those that this token made still work, in a sentence; nothing where none does."""
    left = await change.tokens.count_made_by(found.row.id, change.now)
    if not left:
        return ()
    return (f"{left} {'token' if left == 1 else 'tokens'} that this one made still {'works' if left == 1 else 'work'}",)


@dataclass(kw_only=True, slots=True)
class BulkRevocation:
    """A token that is revoked with all that it made. ``step`` until it is ``done``."""

    done: bool = False
    _after: Cursor | None = None

    async def step(self, change: Change, asker: Caller, policies: PolicyService, found: Found) -> None:
        """Revoke this token, and some of those that it made."""
        own = _presented(change)
        page = await change.tokens.made_by(found.row.id, change.now, after=self._after, limit=AT_ONCE)
        self.done = len(page) < AT_ONCE
        entries = [entry for entry in page if entry.token.id != own]
        if self.done and own not in ("", found.row.id) and await change.tokens.descends(own, found.row.id):
            entries += await _one(change, own)
        elif not self.done:
            self._after = Cursor(created_at=page[-1].token.created_at, id=page[-1].token.id)
        if found.row.status is not TokenStatus.REVOKED and (self.done or found.row.id != own):
            await change.tokens.revoke(found.row.id, change.now)
            loading.record_found(change, "revoke", found)
        ended: list[str] = []
        for entry in entries:
            one = await loading.at_hand(change, asker, entry)
            if one.status(change.now) is not TokenStatus.ACTIVE:
                continue
            if await loading.judge(change, asker, policies, one, Verb.REVOKE) is Ruling.ALLOWED:
                ended.append(one.row.id)
                loading.record_found(change, "revoke", one, {"with": found.row.prefix})
        await change.tokens.revoke_many(ended, change.now)


@dataclass(kw_only=True, slots=True)
class BulkDeletion:
    """The deletion of an owner's tokens, all but ``keep``. ``step`` until it is ``done``; then ``deleted`` is how many
    there were.
    """

    user_id: str
    keep: str | None
    deleted: int = 0
    done: bool = False
    _after: Cursor | None = None
    _own: bool = False
    _refused: Ruling = Ruling.ALLOWED

    async def step(self, change: Change, asker: Caller, policies: PolicyService) -> None:
        """Delete some of those that ``asker`` may delete.

        Raises Forbidden where there are some in sight, of somebody else, and none that may be deleted.
        """
        own = _presented(change)
        sights = authorization.sight(asker) + authorization.sight(asker, AccountOperation.DELETE)
        query = TokenListQuery(within=authorization.narrowed(sights, Within(user_id=self.user_id)))
        page = await change.tokens.page(query, after=self._after, limit=AT_ONCE, now=change.now)
        self.done = len(page) < AT_ONCE
        entries = [entry for entry in page if entry.token.id != own]
        self._own = self._own or len(entries) < len(page)
        if not self.done:
            self._after = query.position(page[-1])
        elif self._own:
            entries += await _one(change, own)
        deleted: list[TokenRow] = []
        for entry in entries:
            one = await loading.at_hand(change, asker, entry)
            if one.row.id == self.keep:
                continue
            ruling = await loading.judge(change, asker, policies, one, Verb.DELETE)
            if ruling is Ruling.ALLOWED:
                loading.record_found(change, "delete", one)
                deleted.append(one.row)
            else:
                self._refused = ruling
        self.deleted += len(deleted)
        if self.done and not self.deleted and self._refused is not Ruling.ALLOWED and self.user_id != asker.user_id:
            authorization.require(self._refused)
        await change.tokens.delete_many(deleted)


def _presented(change: Change) -> str:
    """The id of the token presented; "" for none."""
    credential = change.actor.credential
    return "" if credential is None else credential.token_id


async def _one(change: Change, token_id: str) -> list[TokenEntry]:
    entry = await change.tokens.get(token_id)
    return [] if entry is None else [entry]
