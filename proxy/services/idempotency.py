"""Idempotency keys: the same ``Idempotency-Key`` with the same request creates something once.

Every creating verb does the same inside its transaction: ``created_before`` first, and if that finds something the verb
returns the view as a replay (``views.Replayable``); otherwise the verb creates it and calls ``remember``.

Rules:

1. The key is stored in the transaction that creates: of two requests at the same time one creates and one replays.
2. A key belongs to the credential that used it (without a credential, to the operator), so callers cannot meet each
   other's keys.
3. Neither the key nor the answer is stored, only hashes and the id of what was created: a replay never shows a secret.
4. A refused request creates nothing, and its key is not stored.
5. A replay shows what the caller may see now, not what it could see when it created it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from proxy.core.errors import Invalid
from proxy.core.model import Actor
from proxy.store.change import Change, Rows

FIELD: Final = "Idempotency-Key"
KEPT: Final = 24 * 3600.0
"""Seconds for which a key is remembered."""
LENGTH: Final = 255
SHOWN_ONCE: Final = "an earlier request with the same key made this, and only its answer showed the value"
_OPERATOR: Final = "operator"


@dataclass(frozen=True, kw_only=True, slots=True)
class IdempotencyKey:
    """The key that a caller chose, and the hash (SHA-256, 64 hex digits) of the request that it came with."""

    value: str
    request_hash: str

    def __post_init__(self) -> None:
        """Raise Invalid for a key that is not 1 to 255 visible ASCII characters."""
        if not 1 <= len(self.value) <= LENGTH or not (self.value.isascii() and self.value.isprintable()):
            raise Invalid(FIELD, f"1 to {LENGTH} visible ASCII characters")

    @property
    def hash(self) -> str:
        """The form in which the key is stored: SHA-256, 64 hex digits."""
        return hashlib.sha256(self.value.encode("ascii")).hexdigest()


async def created_before(rows: Rows, actor: Actor, key: IdempotencyKey | None, now: float) -> str | None:
    """The id of what an earlier request with this key created within the last day; None if there was no such request.

    Raises Invalid if the earlier request was a different one.
    """
    if key is None:
        return None
    found = await rows.idempotency.get(_owner(actor), key.hash)
    if found is None or found.at <= now - KEPT:
        return None
    if found.request_hash != key.request_hash:
        raise Invalid(FIELD, "this key came with another request before")
    return found.target_id


async def remember(change: Change, key: IdempotencyKey | None, target_id: str) -> None:
    """Store the id of what this transaction creates under the key, and delete the keys that are too old."""
    if key is None:
        return
    await change.idempotency.forget(change.now - KEPT)
    await change.idempotency.add(
        _owner(change.actor), key.hash, request_hash=key.request_hash, target_id=target_id, at=change.now
    )


def _owner(actor: Actor) -> str:
    return _OPERATOR if actor.credential is None else actor.credential.token_id
