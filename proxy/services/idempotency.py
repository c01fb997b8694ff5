"""Retries of what makes something: the same ``Idempotency-Key`` with the same request makes it once.

Rules:

1. What was made is remembered in the transaction that makes it: of two at the same time one makes and one replays.
2. A key belongs to the credential that used it (to the operator, without one), so nobody meets another's.
3. Neither the key nor the answer is stored, only hashes and the id of what was made: a replay never shows a secret.
4. A request that was refused made nothing and is not remembered.
5. A replay shows what its caller may see now, not what it could see when it made it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from proxy.core.errors import Conflict, Invalid
from proxy.core.model import Actor
from proxy.store.change import Change, Rows

FIELD: Final = "Idempotency-Key"
KEPT: Final = 24 * 3600.0
"""Seconds for which a key is remembered."""
LENGTH: Final = 255
SHOWN_ONCE: Final = "this was made by an earlier request with the same key, whose answer showed the value: once"
_OPERATOR: Final = "operator"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """A key that a caller chose, and a hash (SHA-256, 64 hex digits) of the request that it came with."""

    key: str
    request_hash: str

    def __post_init__(self) -> None:
        """Raises Invalid for a key that cannot be one."""
        if not 1 <= len(self.key) <= LENGTH or not (self.key.isascii() and self.key.isprintable()):
            raise Invalid(FIELD, f"1 to {LENGTH} visible ASCII characters")

    @property
    def key_hash(self) -> str:
        return hashlib.sha256(self.key.encode("ascii")).hexdigest()


async def made_before(rows: Rows, actor: Actor, retry: Retry | None, now: float) -> str | None:
    """The id of what an earlier request with this key made, within the last day; None where there was none.

    Raises Invalid where that was another request.
    """
    if retry is None:
        return None
    found = await rows.idempotency.get(_caller(actor), retry.key_hash)
    if found is None or found.at <= now - KEPT:
        return None
    if found.request_hash != retry.request_hash:
        raise Invalid(FIELD, "this key came with another request before")
    return found.target_id


async def require_new(change: Change, retry: Retry | None) -> None:
    """Raises Conflict where an earlier request with this key made what this one is to make, Invalid where another."""
    if await made_before(change, change.actor, retry, change.now) is not None:
        raise Conflict("an earlier request with the same key has made this")


async def remember(change: Change, retry: Retry | None, target_id: str) -> None:
    """Keep what this transaction made under the key, and forget the keys that are too old."""
    if retry is None:
        return
    await change.idempotency.forget(change.now - KEPT)
    await change.idempotency.add(
        _caller(change.actor),
        retry.key_hash,
        request_hash=retry.request_hash,
        target_id=target_id,
        at=change.now,
    )


def _caller(actor: Actor) -> str:
    return _OPERATOR if actor.credential is None else actor.credential.token_id
