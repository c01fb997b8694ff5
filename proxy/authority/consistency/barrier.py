"""Waiting until a change is in force on every node: the last step before its caller gets an answer.

Rules of this module:
1. A wait ends when the own page has reached the number and every row of a node has acknowledged it or is gone; or when
   no node can have a lease any more that was granted without it: ``bound`` and a margin after the COMMIT returned.
   A lease that is renewed later comes with the change, because a renewal returns the head, and raises the page first.
2. No time of the database decides: it may step, and a renewal that is being executed is in no snapshot.
3. Rows are read on one connection, every ``POLL_SECONDS`` while anybody waits. The store must still be the one that
   this node follows: another one knows nothing of the nodes that hold leases (``OutcomeUnknown``).
4. A row that has not acknowledged in time is deleted, so that the next change does not wait for it: only if its count
   of renewals has been the same for ``bound`` and a margin. A lease that began with the last renewal is then over; one
   that began later has another count.
5. If the database cannot be reached meanwhile, the wait ends at the same time, without the delete.
6. After the store has become another one (``suspect``), rows of nodes may be missing from it. No wait ends before every
   lease that was granted by the former one is over.
7. A caller that is gone ends its wait and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from proxy.core.errors import OutcomeUnknown, StoreUnavailable
from proxy.core.ipc.clock import boottime_ns
from proxy.observe import defects
from proxy.observe.logs import get_logger
from proxy.settings.model import LONGEST_SHARED_LEASE
from proxy.store.nodes.records import Member, Poll
from proxy.store.nodes.sessions import MemberPoll

T = TypeVar("T")

POLL_SECONDS: Final = 0.002
RETRY_SECONDS: Final = 0.05
MARGIN: Final = 0.02
"""The part of a lease that clocks of two hosts may differ by; their rates are assumed to differ by less than 1 %."""
SHORTEST_MARGIN: Final = 0.02
_NS: Final = 1_000_000_000
_REPLACED: Final = "the store was replaced by another one; whether the change is stored there is unknown"
_STOPPED: Final = "the change is stored, but whether it is in force on every node is unknown"

_log = get_logger("authority.barrier")


def over_after_ns(bound: float) -> int:
    """Nanoseconds after which a lease of at most ``bound`` seconds is over on any host."""
    return int((bound + max(bound * MARGIN, SHORTEST_MARGIN)) * _NS)


@dataclass(frozen=True, slots=True)
class _Count:
    """How many renewals a row has, and when this count was first seen (CLOCK_BOOTTIME, nanoseconds)."""

    renewals: int
    since_ns: int


@dataclass(frozen=True, slots=True)
class _Late:
    """The number that a row lacks, and its renewals."""

    number: int
    renewals: int


@dataclass(kw_only=True, eq=False)
class _Wait:
    number: int
    committed_ns: int
    history: str
    """The history that was followed when it began; "" for the acceptance of a refused store."""
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class OwnNode(Protocol):
    """This process among the nodes."""

    @property
    def id(self) -> str:
        """The id of its row; "" without one."""
        ...

    @property
    def history(self) -> str:
        """The history of the store that it follows; "" while it refuses to follow one, and then only time counts."""
        ...

    @property
    def applied(self) -> int:
        """The newest change that its follower has read and raised the page to."""
        ...

    @property
    def bound(self) -> float:
        """The longest lease of any node in seconds, as last read; 0 if it never was."""
        ...

    def saw(self, number: int) -> None:
        """Raise the page to a committed change."""
        ...


class Barrier:
    """Lets callers wait for a number. ``wait`` is ``Store.known``."""

    def __init__(
        self,
        members: MemberPoll,
        own: OwnNode,
        *,
        timed: Callable[[float], None] = lambda _seconds: None,
        clock: Callable[[], int] = boottime_ns,
    ) -> None:
        """``timed`` gets the seconds from COMMIT to the end of each wait."""
        self._members = members
        self._own = own
        self._timed = timed
        self._clock = clock
        self._waits: dict[_Wait, None] = {}
        self._counts: dict[str, _Count] = {}
        self._bound = 0.0
        self._task: asyncio.Task[None] | None = None
        self._not_before_ns = 0
        self._late: dict[str, _Late] = {}
        """The rows that waits need, or needed when their time was over."""
        self.confirmed = 0
        """The highest number that is known to be in force on every node."""
        self.polls = 0
        """How often the rows were read, or could not be read."""

    @property
    def bound(self) -> float:
        """The longest lease of any node, in seconds; the longest that the settings allow while it was never read."""
        return max(self._bound, self._own.bound) or LONGEST_SHARED_LEASE

    @property
    def polling(self) -> bool:
        """Whether the rows are being polled: while anybody waits, and until a row that was too late is settled."""
        return self._task is not None

    def suspect(self) -> None:
        """The store is another one than before (rule 6); all that was confirmed belongs to the former one."""
        self._not_before_ns = self._clock() + over_after_ns(self.bound)
        self._fail(_REPLACED, [wait for wait in self._waits if wait.history])
        self.confirmed = 0
        self._counts.clear()

    def saw_bound(self, bound: float) -> None:
        """A change was made, or refused, under this lease bound in seconds: its wait must not be shorter."""
        self._bound = max(self._bound, bound)

    async def wait(self, number: int, committed_ns: int) -> None:
        """Return when ``number``, committed at ``committed_ns`` (CLOCK_BOOTTIME) at the latest, is in force everywhere.

        Raises OutcomeUnknown if the store is another one meanwhile.
        """
        self._own.saw(number)
        if number <= self.confirmed:
            return
        wait = _Wait(number=number, committed_ns=committed_ns, history=self._own.history)
        self._waits[wait] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="wait for the nodes")
            self._task.add_done_callback(defects.noted)
        try:
            await wait.done
        finally:
            self._waits.pop(wait, None)
        self._timed((self._clock() - committed_ns) / _NS)

    async def close(self) -> None:
        """Stop polling; who still waits gets OutcomeUnknown."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail(_STOPPED)

    async def _run(self) -> None:
        try:
            while self._waits or self._late:
                # Read before the snapshot begins: a node that joins after the snapshot has all of it.
                own = self._own.applied
                poll = await self._in_time(self._members.poll()) if self._own.history else None
                self.polls += 1
                if poll is None:
                    self._late.clear()
                    await self._in_time(asyncio.sleep(RETRY_SECONDS))
                    continue
                self._note(poll)
                if self._own.history not in ("", poll.history):
                    self._fail(_REPLACED)
                    self._late.clear()
                    continue
                self._settle(poll, own)
                for member in self._overdue_members(poll):
                    _log.warning("a node has not acknowledged a change in time and is forgotten", node=member.id)
                    await self._in_time(self._members.reap(member.id, member.renewals))
                if self._waits or self._late:
                    await self._in_time(asyncio.sleep(POLL_SECONDS))
        finally:
            self._task = None
            self._fail(_STOPPED)

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``work``, None if it fails; waits that are over meanwhile end at their time."""
        task = asyncio.create_task(work, name="poll the nodes")
        try:
            while not task.done():
                ends = [self._end_ns(wait) for wait in self._waits]
                seconds = max(0.0, (min(ends) - self._clock()) / _NS) if ends else None
                await asyncio.wait((task,), timeout=seconds)
                self._end_overdue()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        try:
            return task.result()
        except StoreUnavailable:
            return None

    def _note(self, poll: Poll) -> None:
        """Note since when each row has had its count of renewals."""
        self._bound = max(self._bound, poll.bound)  # it is only ever raised
        now, before = self._clock(), self._counts
        self._counts = {
            member.id: count
            if (count := before.get(member.id)) is not None and count.renewals == member.renewals
            else _Count(member.renewals, now)
            for member in poll.members
        }

    def _settle(self, poll: Poll, own: int) -> None:
        """End the waits that every row has acknowledged, and note the rows that the others wait for."""
        others = [member for member in poll.members if member.id != self._own.id]
        if self._clock() >= self._not_before_ns:
            self.confirmed = max(self.confirmed, min([own, *(member.applied for member in others)]))
        for wait in tuple(self._waits):
            if wait.number <= self.confirmed:
                self._end(wait)
        wanted = max((wait.number for wait in self._waits), default=0)
        late: dict[str, _Late] = {}
        for member in others:
            number = wanted if member.applied < wanted else 0
            before = self._late.get(member.id)
            # A row whose wait has ended stays late until it moves or is deleted: it would delay the next change, too.
            if before is not None and before.renewals == member.renewals and member.applied < before.number:
                number = max(number, before.number)
            if number:
                late[member.id] = _Late(number, member.renewals)
        self._late = late

    def _overdue_members(self, poll: Poll) -> list[Member]:
        """The late rows whose last lease is certainly over (rule 4)."""
        now, over = self._clock(), over_after_ns(self.bound)
        return [
            member
            for member in poll.members
            if member.id in self._late and now >= self._counts[member.id].since_ns + over
        ]

    def _end_overdue(self) -> None:
        """End the waits for which no lease can be left that was granted without their change."""
        now = self._clock()
        for wait in tuple(self._waits):
            if now >= self._end_ns(wait):
                self.confirmed = max(self.confirmed, wait.number)
                self._end(wait)

    def _end_ns(self, wait: _Wait) -> int:
        return max(wait.committed_ns + over_after_ns(self.bound), self._not_before_ns)

    def _end(self, wait: _Wait) -> None:
        self._waits.pop(wait, None)
        if not wait.done.done():
            wait.done.set_result(None)

    def _fail(self, why: str, waits: Iterable[_Wait] | None = None) -> None:
        for wait in tuple(self._waits if waits is None else waits):
            self._waits.pop(wait, None)
            if not wait.done.done():
                wait.done.set_exception(OutcomeUnknown(why))
