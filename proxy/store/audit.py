"""The audit log as a chain: each event's hash covers its whole row and the hash before it.

Rules:

1. An event is appended in the transaction of the change that it tells of, or with others that tell of requests, by the
   writer alone, so numbers have no gaps.
2. ``hash`` is SHA-256 over the previous hash, a line feed, and the canonical JSON of every other column (keys
   sorted, no spaces, ASCII). Times are floats and come back from the store bit for bit.
   A column that a later schema added counts only where it is not empty, so that older rows keep their hash.
3. The single row of ``audit_chain`` says where the chain begins (after retention) and ends, so a cut end shows too.
4. No secret, hash of a secret or digest is ever handed to this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.store import tables
from proxy.store.records import AuditRow

_T = tables.audit_events
_CHAIN = tables.audit_chain
_CHAIN_ID: Final = 1
_VERIFY_PAGE: Final = 1000
_ADDED: Final = frozenset({"user_id"})
"""Columns that the first schema did not have (rule 2)."""

LEVEL_ACCOUNT: Final = "account"
LEVEL_ORGANISATION: Final = "organisation"


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What happened, before it has its place in the chain. With an organisation, it is on that organisation's log."""

    action: str
    target_kind: str
    target_id: str
    target_name: str = ""
    org_id: str = ""
    outcome: str = "done"
    reason: str = ""
    address: str = ""
    request_id: str = ""
    decision_id: str = ""
    user_id: str = ""
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def level(self) -> str:
        return LEVEL_ORGANISATION if self.org_id else LEVEL_ACCOUNT


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """The answer of a check of the chain: how many events hold, and what is wrong with the next one, if anything."""

    events: int
    problem: str | None


def event_hash(prev_hash: str, values: Mapping[str, object]) -> str:
    """The hash (64 hex digits) of an event from all its columns but ``prev_hash`` and ``hash``."""
    counted = {name: value for name, value in values.items() if value or name not in _ADDED}
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{prev_hash}\n{text}".encode("ascii")).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Occurred:
    """An event with who did it (kind, id and name) and when (unix seconds)."""

    event: Event
    actor: tuple[str, str, str]
    at: float


async def append(
    connection: AsyncConnection, event: Event, *, actor: tuple[str, str, str], epoch: int, at: float
) -> None:
    """Add an event at the head of the chain; ``actor`` is its kind, id and name."""
    await append_many(connection, (Occurred(event=event, actor=actor, at=at),), epoch=epoch)


async def append_many(connection: AsyncConnection, occurred: Sequence[Occurred], *, epoch: int = 0) -> None:
    """Add events at the head of the chain, in this order; ``epoch`` 0 is for events of requests, which change nothing.

    The head is read and written once, so many events at a time cost little more than one.
    """
    if not occurred:
        return
    head = (await connection.execute(sa.select(_CHAIN.c.head_n, _CHAIN.c.head_hash))).one_or_none()
    number, hash_ = (0, "") if head is None else (head[0], head[1])
    rows = []
    for one in occurred:
        number += 1
        values = _values(one, number, epoch)
        prev_hash, hash_ = hash_, event_hash(hash_, values)
        rows.append({**values, "prev_hash": prev_hash, "hash": hash_})
    await connection.execute(_T.insert(), rows)
    chain = {"head_n": number, "head_hash": hash_}
    if head is None:
        await connection.execute(_CHAIN.insert().values(id=_CHAIN_ID, base_n=0, base_hash="", **chain))
    else:
        await connection.execute(_CHAIN.update().values(**chain))


def _values(one: Occurred, number: int, epoch: int) -> dict[str, object]:
    event = one.event
    kind, id_, name = one.actor
    return {
        "n": number,
        "at": one.at,
        "level": event.level,
        "org_id": event.org_id,
        "actor_kind": kind,
        "actor_id": id_,
        "actor_name": name,
        "action": event.action,
        "target_kind": event.target_kind,
        "target_id": event.target_id,
        "target_name": event.target_name,
        "outcome": event.outcome,
        "reason": event.reason,
        "address": event.address,
        "request_id": event.request_id,
        "decision_id": event.decision_id,
        "epoch": epoch,
        "details": dict(event.details),
        "user_id": event.user_id,
    }


async def verify(connection: AsyncConnection) -> Verified:
    """Walk the chain from its base to its head; ``connection`` is a snapshot."""
    chain = (await connection.execute(sa.select(_CHAIN))).mappings().one_or_none()
    number, previous = (0, "") if chain is None else (chain["base_n"], chain["base_hash"])
    checked = 0
    while True:
        query = sa.select(_T).where(_T.c.n > number).order_by(_T.c.n).limit(_VERIFY_PAGE)
        rows = [AuditRow(**row) for row in (await connection.execute(query)).mappings()]
        for row in rows:
            if row.n != number + 1:
                return Verified(events=checked, problem=f"event {number + 1} is missing")
            values = asdict(row)
            del values["hash"], values["prev_hash"]
            if row.prev_hash != previous or row.hash != event_hash(previous, values):
                return Verified(events=checked, problem=f"event {row.n} was altered")
            number, previous, checked = row.n, row.hash, checked + 1
        if len(rows) < _VERIFY_PAGE:
            break
    head = (0, "") if chain is None else (chain["head_n"], chain["head_hash"])
    if (number, previous) != head:
        return Verified(events=checked, problem=f"the log ends at event {number} but its head is event {head[0]}")
    return Verified(events=checked, problem=None)


class Audit:
    """Reading the log, over the connection of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def newest(
        self, *, limit: int, before: int | None = None, org_id: str | None = None, actor_id: str | None = None
    ) -> list[AuditRow]:
        """The newest events first, those numbered below ``before``, of one organisation or one actor where given."""
        query = sa.select(_T).order_by(_T.c.n.desc()).limit(limit)
        if before is not None:
            query = query.where(_T.c.n < before)
        if org_id is not None:
            query = query.where(_T.c.org_id == org_id)
        if actor_id is not None:
            query = query.where(_T.c.actor_id == actor_id)
        return [AuditRow(**row) for row in (await self._connection.execute(query)).mappings()]
