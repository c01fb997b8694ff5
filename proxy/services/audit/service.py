"""The audit log for people: searched, followed, exported, verified, and shortened by retention.

Rules:

1. Whoever asks sees what they may see, decided in the transaction that reads: the operator and an account role with
   ``patgate.audit:list`` everything, a role with it in an organisation that organisation's log, everybody else the log
   of their own account as far as their token reaches (``_Reader``).
2. An organisation that is not there and one that is not to be seen are refused in the same words; so are users.
3. A page costs a bounded amount of work whatever is asked for (``store.log``), and so does a step of a verification.
4. Whoever reads more than their own account's log leaves an event of it (``audit_reads``).
5. Retention is told in the log before it removes anything, and only what it told of can be gone from the beginning.
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
from proxy.services.caller import AccountEntity, AccountOperation, Caller, standing
from proxy.services.counting import COUNT_MOST
from proxy.services.validation import Fields
from proxy.services.views import LIMIT_DEFAULT, LIMIT_MOST, NOTHING_MORE, Page, Remaining, check_limit, rfc3339
from proxy.store.audit.chain import LOG_ID, RETAIN, Event, Mark, Occurred
from proxy.store.audit.queries import LogEntry, LogPosition, LogQuery, SortOrder
from proxy.store.change import Rows
from proxy.store.store import Store

RETAIN_AT_ONCE: Final = 1000
"""Events that retention removes in one transaction, so that nobody's change waits long."""
VERIFY_AT_ONCE: Final = 20_000
"""Events that one step of a verification checks: half a second."""

_PERMISSION: Final = f"this needs the permission {AccountEntity.AUDIT.value}:{AccountOperation.LIST.value}"
_NO_ONE: Final = "-"
"""An id that nobody has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditView:
    """One event. ``at`` is in unix seconds; texts are "" where there is nothing."""

    entry: LogEntry

    def as_dict(self) -> dict[str, object]:
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
    """What a step of a verification found. ``next`` is where the next step goes on; ``None`` where it is over.

    ``head`` is the newest event when it was asked. ``problem`` names the first event that is gone or altered.
    """

    events: int
    problem: str | None
    next: Mark | None
    head: Mark

    def as_dict(self) -> dict[str, object]:
        return {
            "events": self.events,
            "problem": self.problem,
            "next": None if self.next is None else str(self.next),
            "head": str(self.head),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Retained:
    """How many events retention removed: those before ``until``, in unix seconds."""

    events: int
    until: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """What somebody may see: the log of one organisation (``org_id``), of one account (``user_id``), or all.

    With ``user_id``, an ``org_id`` of "" stands for events of no organisation.
    """

    org_id: str | None = None
    user_id: str | None = None


class AuditService:
    """The verbs of the audit log; all raise StoreUnavailable, and Unauthenticated for a credential that has ended."""

    def __init__(self, store: Store, clock: Callable[[], float], reads: AuditReads | None = None) -> None:
        """``reads`` is told of what is read; None for a log of which nobody wants to know that."""
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
        limit: int = LIMIT_DEFAULT,
        cursor: str | None = None,
        count: bool = False,
    ) -> Page[AuditView]:
        """A page of the log, by time, the newest first or the oldest.

        ``after`` (a number, or ``NOW``) lists what was recorded after that event, by number: whoever keeps asking for
        the next page follows the log. A page can have fewer events than there are, or none, and say where to go on all
        the same. ``count`` asks how many more there are, which a log that is followed cannot say.

        Raises Invalid, NotFound (user, org), Forbidden.
        """
        now = self._clock()
        fields = Fields()
        query = read_filter(wanted, now, fields)
        order = order if after is None else SortOrder.RECORDED
        fields.check(lambda: check_limit(limit))
        if count and order is SortOrder.RECORDED:
            fields.fault("count", "a list that follows the log has no end to count to")
        number = None if after is None else fields.check(lambda: read_number(after))
        place = None if cursor is None else fields.check(lambda: read_place(cursor, order))
        fields.done()
        async with self._store.read() as rows:
            query = await self._visible(rows, await standing(rows, actor, now), wanted, query)
            if place is None and order is SortOrder.RECORDED:
                place = LogPosition(at=0.0, n=(await rows.log.head()).n if number is None else number)
            found = await rows.log.page(query, order, place, limit)
        left = await self._remaining(query, order, found.place) if count else None
        own = actor.user_id != "" and query.user_id == actor.user_id
        if self._reads is not None and not own:
            self._reads.page(actor, wanted, order, query.org_id or "", now)
        views = [AuditView(entry=entry) for entry in found.entries]
        following = None if found.place is None else write_place(order, found.place)
        return Page(items=views, next_cursor=following, remaining=left)

    async def _remaining(self, query: LogQuery, order: SortOrder, place: LogPosition | None) -> Remaining:
        """How many events there are behind ``place``, as far as a bounded number of pages finds them.

        Each page is read by itself: it may take a second from a slow disk, and other questions get the reader
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
        """Check the next ``limit`` events of the chain, behind ``after`` (``next`` of the step before).

        ``head`` is what an earlier verification ended with, kept elsewhere: that event must be the same still. For the
        operator and who may see the whole log. Raises Invalid, Forbidden.
        """
        fields = Fields()
        last = None if after is None else fields.check(lambda: read_mark(after, "after"))
        expected = None if head is None else fields.check(lambda: read_mark(head, "head"))
        fields.done()
        async with self._store.read() as rows:
            (await standing(rows, actor, self._clock())).require(AccountEntity.AUDIT, AccountOperation.LIST)
        found = await self._store.verify_audit(last, expected, limit)
        more = not found.done and found.problem is None
        return VerifyView(
            events=found.events, problem=found.problem, next=found.last if more else None, head=found.head
        )

    async def retain(self, actor: Actor, before: float) -> Retained:
        """Remove the events from before ``before`` (unix seconds), a few at a time, and leave an event that says so.

        For the operator only. Raises Forbidden, and Conflict where an event that the log would begin behind is gone.
        """
        if actor.credential is not None:
            raise Forbidden("only the operator shortens the audit log")
        now = self._clock()
        old = await self._store.outdated_audit(before, now)
        if not old.events:
            return Retained(events=0, until=before)
        details = {"events": old.events, "through": old.through, "change": old.change, "until": rfc3339(before)}
        told = Occurred(
            event=Event(action=RETAIN, target_kind="log", target_id=LOG_ID, details=details),
            actor=(actor.kind.value, actor.id, actor.name),
            at=now,
        )
        removed = await self._store.trim_audit(old.through, RETAIN_AT_ONCE, told)
        while removed < old.events and (more := await self._store.trim_audit(old.through, RETAIN_AT_ONCE)):
            removed += more
        return Retained(events=removed, until=before)

    async def _visible(self, rows: Rows, asker: Caller, wanted: AuditFilter, query: LogQuery) -> LogQuery:
        """The query, kept to what ``asker`` may see (rule 1). Raises NotFound, Forbidden."""
        reader = await _reader(rows, asker, wanted.org)
        query = replace(query, org_id=reader.org_id, user_id=reader.user_id)
        if wanted.user is None:
            return query
        user_id = await _user_id(rows, wanted.user)
        if reader.user_id is not None:
            if user_id != reader.user_id:
                raise NotFound(_NO_USER)
        elif user_id is None and reader.org_id is None:
            raise NotFound(_NO_USER)
        # Whoever sees one organisation's log learns nothing of who else there is.
        return replace(query, user_id=user_id or _NO_ONE)


_NO_USER: Final = "there is no user with this email or id"


async def _reader(rows: Rows, asker: Caller, org: str | None) -> _Reader:
    if org is not None:
        found = await lookup.org(rows, org)
        if asker.may(AccountEntity.AUDIT, AccountOperation.LIST, found.id):
            return _Reader(org_id=found.id)
        await lookup.visible_org(rows, asker, org)
        raise Forbidden(_PERMISSION)
    if asker.may(AccountEntity.AUDIT, AccountOperation.LIST):
        return _Reader()
    grant = asker.grant
    if (
        grant is not None
        and grant.reach is Reach.ORG
        and asker.may(AccountEntity.AUDIT, AccountOperation.LIST, grant.org_id)
    ):
        return _Reader(org_id=grant.org_id)
    if grant is None or not grant.user_id or not asker.scopes_allow(AccountEntity.AUDIT, AccountOperation.LIST):
        raise Forbidden(_PERMISSION)
    reached = {Reach.PERSONAL: "", Reach.ORG: grant.org_id}.get(grant.reach)
    return _Reader(user_id=grant.user_id, org_id=reached)


async def _user_id(rows: Rows, reference: str) -> str | None:
    """The id of the user with this email or id; a removed one is found by id. ``None`` for nobody."""
    if identifiers.is_user_id(reference):
        found = await rows.users.by_id(reference)
    else:
        found = await rows.users.by_email_key(identifiers.email_key(reference))
    return None if found is None else found.id
