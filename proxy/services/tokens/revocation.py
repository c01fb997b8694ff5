"""Bulk revocation and deletion: revokes a token with those that it created, and deletes all tokens of an owner.

Rules:

1. Revoking or deleting a token does not end the tokens that it created. The caller gets a warning with the number of
   those that still work.
2. On request they are revoked too, as far as the caller may revoke each of them. The warning counts the others.
3. There may be thousands, and other changes wait for each transaction. So one transaction handles ``AT_ONCE`` tokens,
   each with its own event, and writes them together. The caller is checked in every transaction. If one fails, the
   transactions before it are committed, and a retry does the rest.
4. The token presented is ended in the last transaction, because it authorizes ending the others.
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


async def descendants_warning(change: Change, found: Found) -> tuple[str, ...]:
    """A warning with the number of tokens that this token created and that still work; empty if there are none."""
    left = await change.tokens.count_made_by(found.row.id, change.now)
    if not left:
        return ()
    return (f"{left} {'token' if left == 1 else 'tokens'} that this one made still {'works' if left == 1 else 'work'}",)


@dataclass(kw_only=True, slots=True)
class BulkRevocation:
    """The revocation of a token and all that it created. Call ``step`` until ``done``."""

    done: bool = False
    _after: Cursor | None = None

    async def step(self, change: Change, caller: Caller, policies: PolicyService, found: Found) -> None:
        """Revoke this token, and some of those that it created."""
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
            one = await loading.load(change, caller, entry)
            if one.status(change.now) is not TokenStatus.ACTIVE:
                continue
            if await loading.judge(change, caller, policies, one, Verb.REVOKE) is Ruling.ALLOWED:
                ended.append(one.row.id)
                loading.record_found(change, "revoke", one, {"with": found.row.prefix})
        await change.tokens.revoke_many(ended, change.now)


@dataclass(kw_only=True, slots=True)
class BulkDeletion:
    """The deletion of an owner's tokens except ``keep``. Call ``step`` until ``done``; ``deleted`` counts them."""

    user_id: str
    keep: str | None
    deleted: int = 0
    done: bool = False
    _after: Cursor | None = None
    _own: bool = False
    _refused: Ruling = Ruling.ALLOWED

    async def step(self, change: Change, caller: Caller, policies: PolicyService) -> None:
        """Delete some of the tokens that the caller may delete.

        Raises Forbidden if the caller sees tokens of another user and may delete none of them.
        """
        own = _presented(change)
        visible = authorization.visible_tokens(caller) + authorization.visible_tokens(caller, AccountOperation.DELETE)
        query = TokenListQuery(within=authorization.intersection(visible, Within(user_id=self.user_id)))
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
            one = await loading.load(change, caller, entry)
            if one.row.id == self.keep:
                continue
            ruling = await loading.judge(change, caller, policies, one, Verb.DELETE)
            if ruling is Ruling.ALLOWED:
                loading.record_found(change, "delete", one)
                deleted.append(one.row)
            else:
                self._refused = ruling
        self.deleted += len(deleted)
        if self.done and not self.deleted and self._refused is not Ruling.ALLOWED and self.user_id != caller.user_id:
            authorization.require(self._refused)
        await change.tokens.delete_many(deleted)


def _presented(change: Change) -> str:
    """The id of the token presented; "" without one."""
    credential = change.actor.credential
    return "" if credential is None else credential.token_id


async def _one(change: Change, token_id: str) -> list[TokenEntry]:
    entry = await change.tokens.get(token_id)
    return [] if entry is None else [entry]
