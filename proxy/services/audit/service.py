"""The audit log: lists, follows and exports events, verifies the hash chain, and applies retention.

Rules:

1. What a caller sees is decided in the transaction that reads (``_Reader``): the operator and an account role with
   ``patgate.audit:list`` see everything, a role with it in an organisation sees that organisation's log, and every
   other caller sees the log of its own account, within the reach of its token.
2. An unknown organisation and one that the caller may not see give the same error; so do users.
3. A page costs a bounded amount of work regardless of the filter (``store.audit.queries``), and so does a step of a
   verification.
4. Reading more than the log of one's own account records an event (``reads``).
5. Retention records an event before it removes anything, and only the events that it names may be missing at the
   beginning of the chain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from proxy.core.errors import Forbidden, NotFound
from proxy.core.kinds import Reach
from proxy.core.model import Actor
from proxy.services import identifiers, lookup
from proxy.services.audit.filters import (
    EVERYTHING,
    AuditFilter,
    read_filter,
    read_mark,
    read_number,
    read_place,
    write_place,
)
from proxy.services.audit.reads import AuditReads
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.paging import (
    COUNT_MOST,
    FIRST_PAGE,
    LIMIT_MOST,
    NOTHING_MORE,
    Page,
    PageRequest,
    Remaining,
    check_limit,
)
from proxy.services.validation import Fields
from proxy.services.views import rfc3339
from proxy.store.audit.chain import LOG_ID, RETAIN, Event, Mark, Occurred
from proxy.store.audit.queries import LogEntry, LogPosition, LogQuery, SortOrder
from proxy.store.change import Rows
from proxy.store.store import Store

RETAIN_AT_ONCE: Final = 1000
"""Events that retention removes in one transaction, so that changes do not wait long."""
VERIFY_AT_ONCE: Final = 20_000
"""Events that one step of a verification checks: half a second."""

_PERMISSION: Final = f"this needs the permission {AccountEntity.AUDIT.value}:{AccountOperation.LIST.value}"
_UNKNOWN_ID: Final = "-"
"""An id that no user has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditView:
    """One event of the audit log."""

    entry: LogEntry

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        entry = self.entry
        return {
            "number": entry.n,
            "time": rfc3339(entry.at),
            "level": entry.level,
            "org_id": entry.org_id or None,
            "org": entry.org_name or None,
            "user_id": entry.user_id or None,
            "user": entry.email or None,
            "actor_kind": entry.actor_kind,
            "actor_id": entry.actor_id or None,
            "actor_name": entry.actor_name or None,
            "action": entry.action,
            "target_kind": entry.target_kind,
            "target_id": entry.target_id or None,
            "target_name": entry.target_name or None,
            "outcome": entry.outcome,
            "reason": entry.reason or None,
            "address": entry.address or None,
            "request_id": entry.request_id or None,
            "decision_id": entry.decision_id or None,
            "details": dict(entry.details),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyView:
    """The result of a step of a verification. The next step continues after ``next``, which is ``None`` at the end.

    ``head`` is the newest event at the time of the step. ``problem`` names the first event that is missing or altered.
    """

    events: int
    problem: str | None
    next: Mark | None
    head: Mark

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {
            "events": self.events,
            "problem": self.problem,
            "next": None if self.next is None else str(self.next),
            "head": str(self.head),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Retained:
    """The number of events that retention removed: those before ``until``, in unix seconds."""

    events: int
    until: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """The part of the log that a caller may see: one organisation's (``org_id``), one user's (``user_id``), or all.

    With ``user_id``, an ``org_id`` of "" means events of no organisation.
    """

    org_id: str | None = None
    user_id: str | None = None


class AuditService:
    """Lists, verifies and shortens the audit log.

    All methods raise StoreUnavailable, and Unauthenticated for a credential that has ended.
    """

    def __init__(self, store: Store, clock: Callable[[], float], reads: AuditReads | None = None) -> None:
        """``reads`` records what is read; with None nothing is recorded."""
        self._store = store
        self._clock = clock
        self._reads = reads

    async def list(
        self,
        actor: Actor,
        wanted: AuditFilter = EVERYTHING,
        *,
        order: SortOrder = SortOrder.NEWEST,
        after: str | None = None,
        page: PageRequest = FIRST_PAGE,
    ) -> Page[AuditView]:
        """A page of the log by time, newest or oldest first.

        ``after`` (an event's number, or ``NOW``) lists by number what was recorded after that event: requesting page
        after page follows the log. A page can have fewer events than ``limit``, or none, and still have a next cursor.
        A followed log has no end, so its remaining events cannot be counted.

        Raises Invalid, NotFound (user, org), Forbidden.
        """
        now, cursor = self._clock(), page.cursor
        fields = Fields()
        query = read_filter(wanted, now, fields)
        order = order if after is None else SortOrder.RECORDED
        fields.check(lambda: check_limit(page.limit))
        if page.count and order is SortOrder.RECORDED:
            fields.fault("count", "a list that follows the log has no end to count to")
        number = None if after is None else fields.check(lambda: read_number(after))
        place = None if cursor is None else fields.check(lambda: read_place(cursor, order))
        fields.done()
        async with self._store.read() as rows:
            query = await self._visible(rows, await load_caller(rows, actor, now), wanted, query)
            if place is None and order is SortOrder.RECORDED:
                place = LogPosition(at=0.0, n=(await rows.log.head()).n if number is None else number)
            found = await rows.log.page(query, order, place, page.limit)
        left = await self._remaining(query, order, found.place) if page.count else None
        own = actor.user_id != "" and query.user_id == actor.user_id
        if self._reads is not None and not own:
            self._reads.page(actor, wanted, order, query.org_id or "", now)
        views = [AuditView(entry=entry) for entry in found.entries]
        following = None if found.place is None else write_place(order, found.place)
        return Page(items=views, next_cursor=following, remaining=left)

    async def _remaining(self, query: LogQuery, order: SortOrder, place: LogPosition | None) -> Remaining:
        """The number of events after ``place``, counted in at most a fixed number of pages.

        Each page has a transaction of its own: it may take a second on a slow disk, and other queries get the reader
        between two pages.
        """
        if place is None:
            return NOTHING_MORE
        count = 0
        for _ in range(COUNT_MOST // LIMIT_MOST):
            async with self._store.read() as rows:
                found = await rows.log.page(query, order, place, LIMIT_MOST)
            count += len(found.entries)
            if found.place is None:
                return Remaining(count=count, exact=True)
            place = found.place
        return Remaining(count=count, exact=False)

    async def verify(
        self, actor: Actor, *, after: str | None = None, head: str | None = None, limit: int = VERIFY_AT_ONCE
    ) -> VerifyView:
        """Check the next ``limit`` events of the chain after ``after`` (the ``next`` of the step before).

        ``head`` is the head of an earlier verification, kept elsewhere: that event must be unchanged. For the operator,
        and callers who may see the whole log. Raises Invalid, Forbidden.
        """
        fields = Fields()
        last = None if after is None else fields.check(lambda: read_mark(after, "after"))
        expected = None if head is None else fields.check(lambda: read_mark(head, "head"))
        fields.done()
        async with self._store.read() as rows:
            (await load_caller(rows, actor, self._clock())).require(AccountEntity.AUDIT, AccountOperation.LIST)
        found = await self._store.verify_audit(last, expected, limit)
        more = not found.done and found.problem is None
        return VerifyView(
            events=found.events, problem=found.problem, next=found.last if more else None, head=found.head
        )

    async def retain(self, actor: Actor, before: float) -> Retained:
        """Remove the events before ``before`` (unix seconds), in several transactions, and record an event about it.

        For the operator only. Raises Forbidden, and Conflict if the chain is broken there.
        """
        if actor.credential is not None:
            raise Forbidden("only the operator may shorten the audit log")
        now = self._clock()
        old = await self._store.outdated_audit(before, now)
        if not old.events:
            return Retained(events=0, until=before)
        details = {"events": old.events, "through": old.through, "change": old.change, "until": rfc3339(before)}
        retention = Occurred(
            event=Event(action=RETAIN, target_kind="log", target_id=LOG_ID, details=details),
            actor=(actor.kind.value, actor.id, actor.name),
            at=now,
        )
        removed = await self._store.trim_audit(old.through, RETAIN_AT_ONCE, retention)
        while removed < old.events and (more := await self._store.trim_audit(old.through, RETAIN_AT_ONCE)):
            removed += more
        return Retained(events=removed, until=before)

    async def _visible(self, rows: Rows, caller: Caller, wanted: AuditFilter, query: LogQuery) -> LogQuery:
        """The query, restricted to what the caller may see (rule 1). Raises NotFound, Forbidden."""
        reader = await _reader(rows, caller, wanted.org)
        query = replace(query, org_id=reader.org_id, user_id=reader.user_id)
        if wanted.user is None:
            return query
        user_id = await _user_id(rows, wanted.user)
        if reader.user_id is not None:
            if user_id != reader.user_id:
                raise NotFound(_NO_USER)
        elif user_id is None and reader.org_id is None:
            raise NotFound(_NO_USER)
        # A caller who sees one organisation's log must not learn which other users exist.
        return replace(query, user_id=user_id or _UNKNOWN_ID)


_NO_USER: Final = "there is no user with this email or id"


async def _reader(rows: Rows, caller: Caller, org: str | None) -> _Reader:
    if org is not None:
        found = await lookup.org(rows, org)
        if caller.may(AccountEntity.AUDIT, AccountOperation.LIST, found.id):
            return _Reader(org_id=found.id)
        await lookup.visible_org(rows, caller, org)
        raise Forbidden(_PERMISSION)
    if caller.may(AccountEntity.AUDIT, AccountOperation.LIST):
        return _Reader()
    grant = caller.grant
    if (
        grant is not None
        and grant.reach is Reach.ORG
        and caller.may(AccountEntity.AUDIT, AccountOperation.LIST, grant.org_id)
    ):
        return _Reader(org_id=grant.org_id)
    if grant is None or not grant.user_id or not caller.scopes_allow(AccountEntity.AUDIT, AccountOperation.LIST):
        raise Forbidden(_PERMISSION)
    reached = {Reach.PERSONAL: "", Reach.ORG: grant.org_id}.get(grant.reach)
    return _Reader(user_id=grant.user_id, org_id=reached)


async def _user_id(rows: Rows, reference: str) -> str | None:
    """The id of the user with this email or id; a removed user only by id. ``None`` for an unknown user."""
    if identifiers.is_user_id(reference):
        found = await rows.users.by_id(reference)
    else:
        found = await rows.users.by_email_key(identifiers.email_key(reference))
    return None if found is None else found.id
