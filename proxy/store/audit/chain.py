"""Appending to and verifying the audit log, a hash chain: each event's hash covers its row and the hash before it.

Rules:

1. An event is appended in the transaction of its change, or together with other request events. The row of
   ``audit_chain`` is locked first, so numbers have no gaps however many processes write.
2. ``hash`` is SHA-256 over the previous hash, a line feed, and the canonical JSON of every other column (keys
   sorted, no spaces, ASCII). Times are floats and come back from the store bit for bit.
   A column that a later schema added counts only if it is not empty, so that older rows keep their hash.
3. The single row of ``audit_chain`` stores where the chain begins (after retention) and ends, so a cut end shows too.
4. No secret, hash of a secret or digest is ever passed to this module.
5. Only retention moves the beginning, never further than an event that it wrote before allows.
6. A verification reads pages, each a snapshot by itself, so that a long one blocks nothing. After a verified event the
   chain only grows; if retention removes that event, the verification continues from the new beginning.
7. Every change leaves an event with its number, so the newest of these is the number of the store's last change. A log
   that was cut at its end, with a head to match, lacks it. Events of requests have no such number: the process that
   wrote them remembers the newest (``written``).
8. No text that is stored here contains a token (``observe.logs.without_tokens``), regardless of what the caller passes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from proxy.core.errors import Conflict, StoreUnavailable
from proxy.observe.logs import without_tokens
from proxy.store import feed, tables
from proxy.store.records import LEVEL_ACCOUNT, LEVEL_ORGANISATION
from proxy.store.sql.planner import unindexed

_T = tables.audit_events
_CHAIN = tables.audit_chain
_CHAIN_ID: Final = 1
_NAMES: Final = tuple(column.name for column in _T.columns)
_STORED: Final = sa.select(*(sa.type_coerce(_T.c[n], sa.Text) if n == "details" else _T.c[n] for n in _NAMES))
"""Rows as stored, ``details`` as text: a tampered value may not be JSON."""
_SEEN = _T.alias("seen")
_READ: Final = sa.select(
    _CHAIN, sa.select(_SEEN.c.hash).where(_SEEN.c.n == sa.bindparam("seen")).scalar_subquery().label("seen_hash")
)
_READ_LOCKED: Final = _READ.with_for_update(of=_CHAIN)
_RETENTION_EVENTS_READ: Final = 1000
_OUTDATED_PAGE: Final = 100_000
_canonical: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_ADDED: Final = frozenset({"user_id"})
"""Columns that the first schema did not have (rule 2)."""

LOG_ID: Final = "audit"
"""The target id of events about the log itself."""
RETAIN: Final = "account.audit.retain"
"""The action of an event that states up to which number (``through``) retention removes events."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """An event before it is appended to the chain. With ``org_id`` it is on that organisation's log."""

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
        """The log that the event is on: the organisation's or the account's."""
        return LEVEL_ORGANISATION if self.org_id else LEVEL_ACCOUNT


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One event by its number and hash: a copy of the newest one proves later that nothing before it changed."""

    n: int
    hash: str

    def __str__(self) -> str:
        return f"{self.n}:{self.hash}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainVerification:
    """The result of verifying the chain: how many events are valid, and the problem with the next one, if any.

    ``last`` is the last valid event, ``head`` the one that the log ends with. If ``done`` is false, events after
    ``last`` are not verified yet.
    """

    events: int
    problem: str | None
    last: Mark
    head: Mark
    done: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Outdated:
    """Events beyond the retention period: those after number ``base``, up to ``through``.

    ``change`` is the number of the last change whose event is among them or was removed before; 0 for none, None if
    that is not known any more.
    """

    base: int
    through: int
    change: int | None = 0

    @property
    def events(self) -> int:
        """How many events these are."""
        return self.through - self.base


def event_hash(prev_hash: str, values: Mapping[str, object]) -> str:
    """The hash (64 hex digits) of an event from all its columns but ``prev_hash`` and ``hash``."""
    if not all([values.get(name, "") for name in _ADDED]):
        values = {name: value for name, value in values.items() if value or name not in _ADDED}
    return hashlib.sha256(f"{prev_hash}\n{_canonical(values)}".encode("ascii")).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Occurred:
    """An event with its actor (kind, id and name) and its time (unix seconds)."""

    event: Event
    actor: tuple[str, str, str]
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """The newest event after events were added; ``lost``: the event that was missing before, of those asked about."""

    head: Mark
    lost: Mark | None = None


async def append_many(
    connection: AsyncConnection, occurred: Sequence[Occurred], *, epoch: int = 0, written: Mark | None = None
) -> Appended | None:
    """Append events at the head of the chain, in this order; ``epoch`` 0 is for request events, which change nothing.

    ``written`` is a committed event; whether it is still there is found out by the statement that locks the chain.
    Returns None if there are no events. The head is read and written once, so many events at a time cost little more
    than one. Raises StoreUnavailable also if the log contradicts them: the caller could do nothing about a conflict.
    """
    if not occurred:
        return None
    chain = await _Chain.read(connection, locked=True, seen=0 if written is None else written.n)
    number, hash_ = chain.head.n, chain.head.hash
    lost = written is not None and not chain.contains(written)
    rows = []
    for one in occurred:
        number += 1
        values = _values(one, number, epoch)
        prev_hash, hash_ = hash_, event_hash(hash_, values)
        rows.append({**values, "prev_hash": prev_hash, "hash": hash_})
    try:
        await connection.execute(_T.insert(), rows)
    except sa.exc.IntegrityError as error:
        raise StoreUnavailable("the audit log cannot be written, so nothing is changed") from error
    moved = {"head_n": number, "head_hash": hash_}
    if chain.stored:
        await connection.execute(_CHAIN.update().values(**moved))
    else:
        await connection.execute(_CHAIN.insert().values(id=_CHAIN_ID, base_n=0, base_hash="", **moved))
    return Appended(head=Mark(n=number, hash=hash_), lost=written if lost else None)


def _values(one: Occurred, number: int, epoch: int) -> dict[str, object]:
    event = one.event
    kind, id_, name = one.actor
    values: dict[str, object] = {
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
    return {column: _without_tokens(value) for column, value in values.items()}


def _without_tokens(value: object) -> object:
    if isinstance(value, str):
        return without_tokens(value)
    if isinstance(value, Mapping):
        return {_without_tokens(key): _without_tokens(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tokens(inner) for inner in value]
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chain:
    """Where the log begins and ends; zero for an empty log. ``seen`` is one event of it that was asked for, if any."""

    base: Mark = Mark(n=0, hash="")
    head: Mark = Mark(n=0, hash="")
    seen: Mark | None = None
    stored: bool = False

    @classmethod
    async def read(cls, connection: AsyncConnection, *, locked: bool = False, seen: int = 0) -> _Chain:
        """Read the chain, with the hash of event ``seen``; ``locked`` until the transaction ends."""
        query = _READ_LOCKED if locked else _READ
        row = (await connection.execute(query, {"seen": seen})).mappings().one_or_none()
        if row is None:
            return cls()
        return cls(
            base=Mark(n=row["base_n"], hash=row["base_hash"]),
            head=Mark(n=row["head_n"], hash=row["head_hash"]),
            seen=None if row["seen_hash"] is None else Mark(n=seen, hash=row["seen_hash"]),
            stored=True,
        )

    def contains(self, event: Mark) -> bool:
        """Whether ``event``, whose number was asked for, is in the log or was removed by retention."""
        if event.n == self.head.n:
            return event == self.head
        return event.n < self.head.n and (event == self.seen or event.n <= self.base.n)


async def head(connection: AsyncConnection) -> Mark:
    """The newest event."""
    return (await _Chain.read(connection)).head


async def verify(
    connection: AsyncConnection,
    after: Mark | None,
    expected: Mark | None,
    limit: int,
    *,
    written: Mark | None = None,
    change: int = 0,
) -> ChainVerification:
    """Verify at most ``limit`` events after ``after``, or from the log's first one on; ``connection`` is a snapshot.

    ``expected`` is an event that the caller kept, ``written`` the newest one that this process has written: events with
    their numbers must have their hashes. ``change`` is the last change that this process acknowledged.
    """
    chain = await _Chain.read(connection)
    start = chain.base if after is None else after
    if start.n < chain.base.n or after is None:
        # The beginning, or retention has removed ``after`` meanwhile.
        unseen = expected if after is None or (expected is not None and expected.n > after.n) else None
        start = chain.base
        if (problem := await _beginning(connection, chain, unseen)) is not None:
            return ChainVerification(events=0, problem=problem, last=start, head=chain.head, done=True)
    query = _STORED.where(_T.c.n > start.n).order_by(_T.c.n).limit(limit)
    rows = (await connection.execute(query)).all()
    last = start
    for index, row in enumerate(rows):
        following = _follows(last, row)
        if isinstance(following, str):
            return ChainVerification(events=index, problem=following, last=last, head=chain.head, done=True)
        if expected is not None and following.n == expected.n and following.hash != expected.hash:
            problem = f"event {following.n} is another than the one whose hash was given"
            return ChainVerification(events=index, problem=problem, last=last, head=chain.head, done=True)
        if written is not None and following.n == written.n and following.hash != written.hash:
            problem = f"event {following.n} is another than the one that this process wrote"
            return ChainVerification(events=index, problem=problem, last=last, head=chain.head, done=True)
        last = following
    done = len(rows) < limit
    problem = None
    if done:
        problem = _end(last, chain.head, expected, written) or await _unlogged(connection, change)
    return ChainVerification(events=len(rows), problem=problem, last=last, head=chain.head, done=done)


def _follows(last: Mark, row: sa.Row[Any]) -> Mark | str:
    """The event in ``row``, if it is unaltered and comes right after ``last``; otherwise the problem."""
    values = dict(zip(_NAMES, row, strict=True))
    number, prev_hash, hash_ = values["n"], values.pop("prev_hash"), values.pop("hash")
    if number != last.n + 1:
        return f"event {last.n + 1} is missing"
    try:
        details = values["details"]
        values["details"] = json.loads(details)
        # The text must be as it was written, too: of a duplicate name, readers take one or the other.
        whole = json.dumps(values["details"]) == details
        whole = whole and prev_hash == last.hash and hash_ == event_hash(last.hash, values)
    except (ValueError, TypeError, RecursionError):
        whole = False
    return Mark(n=number, hash=hash_) if whole else f"event {number} was altered"


def _end(last: Mark, head_: Mark, expected: Mark | None, written: Mark | None) -> str | None:
    if last != head_:
        return f"the log ends at event {last.n} but its head is event {head_.n}"
    if expected is not None and expected.n > last.n:
        return f"the log ends at event {last.n}, before event {expected.n} whose hash was given"
    if written is not None and written.n > last.n:
        return f"the log ends at event {last.n}, but this process has written event {written.n}"
    return None


async def tail_problem(connection: AsyncConnection, *, written: Mark | None = None, change: int = 0) -> str | None:
    """A problem with the end of the log that its last event, its head and the last change show (rule 7), if any."""
    chain = await _Chain.read(connection, seen=0 if written is None else written.n)
    newest = (await connection.execute(sa.select(_T.c.n, _T.c.hash).order_by(_T.c.n.desc()).limit(1))).one_or_none()
    last = chain.base if newest is None else Mark(n=newest[0], hash=newest[1])
    if written is not None and written.n <= last.n and not chain.contains(written):
        return f"event {written.n} is another than the one that this process wrote"
    return _end(last, chain.head, None, written) or await _unlogged(connection, change)


async def _unlogged(connection: AsyncConnection, acknowledged: int) -> str | None:
    """A problem if the event of the store's last change is missing."""
    last = max(await feed.epoch(connection), acknowledged)
    logged = (await connection.execute(sa.select(sa.func.max(_T.c.epoch)).where(tables.EVENT_CHANGED))).scalar_one()
    if logged is None:
        logged = (await _removed(connection)).change
    if logged is not None and logged < last:
        return f"the log ends before the event of change {last}, which the store has made"
    return None


async def _beginning(connection: AsyncConnection, chain: _Chain, expected: Mark | None) -> str | None:
    """A problem with the beginning of the log (rule 5), if any."""
    base = chain.base
    if expected is not None and (expected.n < base.n or (expected.n == base.n and expected != base)):
        return f"event {expected.n}, whose hash was given, is not in the log any more"
    first = (await connection.execute(sa.select(sa.func.min(_T.c.n)))).scalar_one()
    if first is not None and first <= base.n:
        return f"event {first} is from before the beginning of the log"
    if base.n and base.n > (await _removed(connection)).through:
        return f"the events up to {base.n} were removed, but not by retention"
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Removed:
    """The last event that retention announced it would remove, and the last change whose event was among them.

    ``change`` is None if an event of retention does not state it: it, or the one before it, is older than this rule.
    """

    through: int = 0
    change: int | None = 0


async def _removed(connection: AsyncConnection) -> _Removed:
    query = (
        sa.select(sa.type_coerce(_T.c.details, sa.Text))
        .where(tables.EVENT_HAS["target_id"], _T.c.target_id == LOG_ID, _T.c.action == RETAIN)
        .order_by(_T.c.at.desc(), _T.c.n.desc())
        .limit(_RETENTION_EVENTS_READ)
    )
    through, change, silent = 0, 0, False
    for (text,) in await connection.execute(query):
        try:
            details = json.loads(text)
            announced, changed = details["through"], details.get("change")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # altered: verification reports it
        through = max(through, announced if type(announced) is int else 0)
        change = max(change, changed if type(changed) is int else 0)
        silent = silent or type(changed) is not int
    return _Removed(through=through, change=None if silent and not change else change)


async def outdated(connection: AsyncConnection, before: float, now: float) -> Outdated:
    """The oldest events, up to the first one that is not older than ``before`` (unix seconds), over a snapshot.

    A time after ``now`` comes from a wrong clock and is ignored, so that it cannot keep the log for ever.
    """
    chain = await _Chain.read(connection)
    read = through = chain.base.n
    at = unindexed(_T.c.at)
    while read < chain.head.n:
        page = (_T.c.n > read, _T.c.n <= read + _OUTDATED_PAGE)
        first_kept = sa.select(sa.func.min(_T.c.n)).where(*page, at >= before, at <= now)
        kept = (await connection.execute(first_kept)).scalar_one()
        last_old = sa.select(sa.func.max(_T.c.n)).where(*page, at < before)
        if kept is not None:
            last_old = last_old.where(_T.c.n < kept)
        through = (await connection.execute(last_old)).scalar_one() or through
        if kept is not None:
            break
        read += _OUTDATED_PAGE
    removed = sa.select(sa.func.max(_T.c.epoch)).where(tables.EVENT_CHANGED, _T.c.n <= through)
    change = (await connection.execute(removed)).scalar_one()
    if change is None:
        change = (await _removed(connection)).change
    return Outdated(base=chain.base.n, through=through, change=change)


async def trim(connection: AsyncConnection, through: int, limit: int) -> int:
    """Remove the oldest events up to number ``through``, at most ``limit``, and move the beginning.

    Returns how many were removed. Raises Conflict if the chain has no event there to begin after.
    """
    chain = await _Chain.read(connection, locked=True)
    last = min(chain.base.n + limit, through, chain.head.n)
    if last <= chain.base.n:
        return 0
    hash_ = (await connection.execute(sa.select(_T.c.hash).where(_T.c.n == last))).scalar_one_or_none()
    if hash_ is None:
        raise Conflict(f"nothing more is removed from the audit log: event {last} is missing already")
    await connection.execute(_T.delete().where(_T.c.n <= last))
    await connection.execute(_CHAIN.update().values(base_n=last, base_hash=hash_))
    return last - chain.base.n
