"""This node among the nodes of its store: joins them, renews its lease, is fenced off, and leaves.

Rules of this module:
1. A renewal reads the clock first and is durable. It returns the head in the same statement; the page is raised to it,
   and only then the lease is extended, from the time that was read. So a slow renewal, or a process that is frozen
   during one, gives a shorter lease, and no lease is ever held without the changes before it.
2. Without a row there is no lease: the node joins again. Each join has a new random id, which is never stored on this
   host: a disk may be cloned.
3. The row is inserted and committed before the first renewal, never in one transaction with it: a change that commits
   in between would see no row, and the renewal would not see the change.
4. A store that is not the one that the node knows (``judgement``) ends the lease at once: the node is fenced. Its row
   is deleted, so that nobody waits for it.
5. A renewal that fails changes nothing: the lease runs out by itself.
6. When the data directory is no longer ours, the lease ends and is never renewed.

What happens in which state is the table ``TRANSITIONS``; everything that is not in it is a defect.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from proxy.authority.consistency.judgement import Judgement, StoreVerdict, judge
from proxy.authority.grants.page_writer import PageWriter
from proxy.core.errors import StoreError
from proxy.core.ipc.clock import boottime_ns
from proxy.observe.logs import get_logger
from proxy.store.nodes.records import AcceptedBy, FeedHead, NodeRow, Remembered, StoreState
from proxy.store.nodes.sessions import NodeSession

RENEWALS_PER_LEASE: Final = 5
FIRST_RETRY_SECONDS: Final = 0.05
LONGEST_RETRY_SECONDS: Final = 0.4
"""Less than a second, so that a node recovers within a second of the store's return."""
FENCED_SECONDS: Final = 0.5
LEAVE_SECONDS: Final = 1.0
_NS: Final = 1_000_000_000

_log = get_logger("authority.node")


class State(StrEnum):
    """What this node is doing."""

    JOINING = "joining"
    """It has no row, or does not know that it has one, and no lease is granted."""
    SERVING = "serving"
    """It has a row and renews its lease, which may run out meanwhile."""
    FENCED = "fenced"
    """The store is not the one that it knows: no lease, no changes, until an operator accepts the store."""
    LEAVING = "leaving"
    """It stops: no lease any more."""


class NodeEvent(StrEnum):
    """What came of a renewal, or what the operator did."""

    RENEWED = "renewed"
    NO_ROW = "no_row"
    """The store is the right one, and the node has no row in it."""
    UNREACHABLE = "unreachable"
    UNKNOWN_STORE = "unknown_store"
    ACCEPTED = "accepted"
    """An operator has accepted the store, here or on another node."""
    STOPPED = "stopped"


TRANSITIONS: Final[Mapping[tuple[State, NodeEvent], State]] = MappingProxyType(
    {
        (State.JOINING, NodeEvent.RENEWED): State.SERVING,
        (State.JOINING, NodeEvent.NO_ROW): State.JOINING,
        (State.JOINING, NodeEvent.UNREACHABLE): State.JOINING,
        (State.JOINING, NodeEvent.UNKNOWN_STORE): State.FENCED,
        (State.JOINING, NodeEvent.ACCEPTED): State.JOINING,
        (State.JOINING, NodeEvent.STOPPED): State.LEAVING,
        (State.SERVING, NodeEvent.RENEWED): State.SERVING,
        (State.SERVING, NodeEvent.NO_ROW): State.JOINING,
        (State.SERVING, NodeEvent.UNREACHABLE): State.SERVING,
        (State.SERVING, NodeEvent.UNKNOWN_STORE): State.FENCED,
        (State.SERVING, NodeEvent.ACCEPTED): State.JOINING,
        (State.SERVING, NodeEvent.STOPPED): State.LEAVING,
        # Without a row, and with a store that is known again: the former one is back.
        (State.FENCED, NodeEvent.NO_ROW): State.JOINING,
        (State.FENCED, NodeEvent.UNREACHABLE): State.FENCED,
        (State.FENCED, NodeEvent.UNKNOWN_STORE): State.FENCED,
        (State.FENCED, NodeEvent.ACCEPTED): State.JOINING,
        (State.FENCED, NodeEvent.STOPPED): State.LEAVING,
        (State.LEAVING, NodeEvent.STOPPED): State.LEAVING,
    }
)


class Host(Protocol):
    """What the node needs of the rest of the authority."""

    def joined(self, node: str, acknowledged: int) -> None:
        """Acknowledge as ``node`` from now on ("": as none); the store has ``acknowledged`` of it."""
        ...

    def saw(self, number: int) -> None:
        """Raise the page to a committed change."""
        ...

    def suspect(self) -> None:
        """The store is another one: rows of nodes may be missing from it."""
        ...

    def followed(self) -> None:
        """The node is fenced no more."""
        ...

    def record(self, history: str, by: AcceptedBy) -> None:
        """Begin to record the history in the store. Called again until it is there."""
        ...

    async def start_over(self, found: str, seen: int) -> None:
        """Let the numbers of the store in this history continue above ``seen``, and every cache drop everything.

        Raises StoreError.
        """
        ...

    def remember(self, remembered: Remembered) -> None:
        """Begin to write to disk what the node remembers."""
        ...


class Node:
    """One node. ``step`` does one renewal or what is needed before one; ``run`` repeats it."""

    def __init__(
        self,
        row: NodeRow,
        session: NodeSession,
        page: PageWriter,
        host: Host,
        *,
        memory: Remembered | None,
        trust_standby: bool,
        owned: Callable[[], bool],
        clock: Callable[[], int] = boottime_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``row`` is without an id; its lease is the node's own. ``memory`` is what the disk has."""
        self._row = row
        self._session = session
        self._page = page
        self._host = host
        self._memory = memory
        self._saved = memory
        self._trust_standby = trust_standby
        self._owned = owned
        self._clock = clock
        self._wall = wall
        self._wake = asyncio.Event()
        self._former: list[str] = []
        """Ids of ours whose rows may still be there: nobody holds a lease under them."""
        self._failures = 0
        self._listed: frozenset[str] | None = None if memory is None else memory.acceptances
        """The ids of the acceptances that were in the store when it was last seen; None if it never was."""
        self.state = State.JOINING
        self.id = ""
        """The id of the row; "" without one."""
        self.why = ""
        """Why the node is fenced, a sentence; "" if it is not."""
        self.history = ""
        """The history of the store that the node follows, also before it has joined."""
        self.bound = 0.0
        """The longest lease of any node in seconds, as last read."""
        self.offset = 0.0
        """Seconds by which the database's clock is ahead of this host's, at the last renewal."""
        self.lost = False
        """Whether the data directory was lost; then the authority must end."""

    @property
    def lease(self) -> float:
        """The lease that a renewal grants, in seconds."""
        return min(self._row.lease, self.bound)

    def set_lease(self, lease: float) -> None:
        """Use a lease of ``lease`` seconds from the next renewal on, which begins now."""
        self._row = replace(self._row, lease=lease)
        self._wake.set()

    def look(self) -> None:
        """Renew now instead of at the next interval."""
        self._wake.set()

    def remaining(self) -> float:
        """Seconds until the lease runs out; 0 when it has."""
        return max(0.0, (self._page.lease_until_ns - self._clock()) / _NS)

    async def run(self) -> None:
        """Renew until cancelled; returns when the data directory is lost."""
        while True:
            self._wake.clear()
            begun = self._clock()
            event = await self.step()
            if self.lost:
                return
            pause = self._pause(event) - (self._clock() - begun) / _NS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause)):
                    await self._wake.wait()

    def _pause(self, event: NodeEvent) -> float:
        """Seconds from the beginning of one step to the next."""
        if event is NodeEvent.UNREACHABLE:
            longest: float = min(FIRST_RETRY_SECONDS * 2.0 ** min(self._failures, 8), LONGEST_RETRY_SECONDS)
            return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads the nodes, hides nothing
        if self.state is State.SERVING:
            return self.lease / RENEWALS_PER_LEASE
        return 0.0 if self.state is State.JOINING else FENCED_SECONDS

    async def step(self) -> NodeEvent:
        """Join if there is no row, then renew; once. Nothing is raised for a store that cannot be used."""
        if not self._owned():
            if not self.lost:
                _log.error("the data directory is no longer ours; the lease is not renewed")
            self.lost = True
            self._page.renew(0)
            return self._moved(NodeEvent.STOPPED)
        try:
            event = await self._renew()
        except StoreError as error:
            self._failures += 1
            if self._failures == 1:
                _log.warning("the lease cannot be renewed", error=error)
            return self._moved(NodeEvent.UNREACHABLE)
        if self._failures:
            _log.info("the store can be reached again", failures=self._failures)
            self._failures = 0
        return self._moved(event)

    def _moved(self, event: NodeEvent) -> NodeEvent:
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if before is not self.state:
            _log.info("node changes its state", before=before.value, now=self.state.value, node=self.id)
            if before is State.FENCED and self.state is State.JOINING:
                self._host.followed()
        return event

    async def judge_store(self) -> StoreState:
        """Judge the store before the node joins, so that nothing is written to one that is refused.

        Raises StoreError.
        """
        page, begun = self._page.epoch, self._clock()
        seen = await self._session.renew("", self._memory)
        self._measure(seen, begun)
        self._moved(await self._judge(seen, page) or NodeEvent.NO_ROW)
        return seen

    async def _renew(self) -> NodeEvent:
        if self.state is State.JOINING and not self.id and self.history:
            await self._join()
        page, begun = self._page.epoch, self._clock()
        seen = await self._session.renew(self.id, self._memory)
        self._measure(seen, begun)
        refused = await self._judge(seen, page)
        if refused is not None:
            return refused
        if not seen.renewed:
            if self.id:
                _log.warning("the row of this node is gone; it joins again", node=self.id)
                self._forget_row()
            return NodeEvent.NO_ROW
        self._host.saw(seen.n)
        self._host.joined(self.id, seen.acknowledged)
        self._page.renew(begun + int(self.lease * _NS))
        self._remember(seen)
        return NodeEvent.RENEWED

    async def _join(self) -> None:
        if self._former:
            await self._session.leave(self._former)
            self._former.clear()
        id_ = uuid.uuid4().hex
        # Noted first: if the answer is lost, the row may be there.
        self._former.append(id_)
        await self._session.join(replace(self._row, id=id_, lease=self.lease), secrets.randbelow(1 << 40))
        self._former.remove(id_)
        self.id = id_

    async def _judge(self, seen: StoreState, page: int) -> NodeEvent | None:
        """None if the store may be followed; otherwise what came of it, and then there is no lease any more."""
        judgement = judge(seen, self._memory, page=page, trust_standby=self._trust_standby)
        if self._is_suspect(seen, judgement):
            self.bound = max(self.bound, seen.bound)
            self._host.suspect()
        self.bound = seen.bound
        self._listed = (self._listed or frozenset()) | {one.id for one in seen.acceptances}
        if judgement.verdict is StoreVerdict.REFUSED:
            await self._fence(judgement.why)
            return NodeEvent.UNKNOWN_STORE
        if judgement.verdict is StoreVerdict.OVERRULED:
            # Fenced until it has succeeded: the caches still have grants of the former store.
            await self._fence(judgement.why)
            self._moved(NodeEvent.UNKNOWN_STORE)
            await self._host.start_over(seen.history, self._page.epoch)
            self._memory = None
            self.why = ""
            self.history = seen.history
            _log.warning("an operator has accepted the store as it is: every cache is dropped")
            return NodeEvent.ACCEPTED
        self.why = ""
        self.history = seen.history
        if judgement.verdict is StoreVerdict.NEW:
            self._host.record(seen.history, AcceptedBy.CREATION)
        elif judgement.verdict is StoreVerdict.MOVED:
            self._host.record(seen.history, AcceptedBy.SYNCHRONOUS)
        return None

    def _is_suspect(self, seen: StoreState, judgement: Judgement) -> bool:
        """Whether rows of nodes with a lease may be missing from the store, for the first time that this is seen."""
        if judgement.verdict is StoreVerdict.OVERRULED:
            return True
        if judgement.verdict is StoreVerdict.REFUSED:
            return self.state is not State.FENCED
        if self._listed is not None and any(
            one.by is AcceptedBy.OPERATOR and one.id not in self._listed for one in seen.acceptances
        ):
            return True  # another content may have the same place: a dump that was put back
        if self.history:
            return seen.history != self.history
        # A start that remembers nothing: where a store was replaced before, it may have been a moment ago.
        former = "" if self._memory is None else self._memory.history
        return judgement.verdict is StoreVerdict.MOVED or (former != seen.history and len(seen.acceptances) > 1)

    async def _fence(self, why: str) -> None:
        self._page.renew(0)
        self._host.joined("", 0)
        self.history = ""
        if why != self.why:
            self.why = why
            _log.error("this node is fenced: it refuses requests and changes", why=why)
        if self.id:
            self._former.append(self.id)
            self.id = ""
        if self._former:
            with contextlib.suppress(StoreError):
                await self._session.leave(self._former)
                self._former.clear()

    def _forget_row(self) -> None:
        self.id = ""
        self._host.joined("", 0)

    def _measure(self, seen: StoreState, begun: int) -> None:
        """Measure the database's clock against this host's, at the middle of the round trip."""
        self.offset = seen.database_time - (self._wall() - (self._clock() - begun) / _NS / 2)
        self._page.set_ahead(self.offset)

    def _remember(self, seen: StoreState) -> None:
        ids = frozenset(one.id for one in seen.acceptances)
        n, mark = seen.n, seen.mark
        if self._memory is not None:
            ids |= self._memory.acceptances
            if self._memory.history == seen.history and self._memory.n > n:
                n, mark = self._memory.n, self._memory.mark  # read after this renewal's snapshot
        self._memory = Remembered(n=n, mark=mark, history=seen.history, acceptances=ids)
        if self._memory != self._saved:
            self._saved = self._memory
            self._host.remember(self._memory)

    def read(self, head: FeedHead) -> None:
        """Remember the newest change of the store that the node follows, in memory; a renewal writes it to disk.

        Without it, a store that was replaced between two renewals could pass for the one that had this change.
        """
        memory = self._memory
        if memory is not None and self.history == memory.history == head.history and head.n > memory.n:
            self._memory = replace(memory, n=head.n, mark=head.mark)

    def not_saved(self) -> None:
        """What was to be remembered is not on the disk: ask for it again at the next renewal."""
        self._saved = None

    def accepted(self, found: str, acceptance: str) -> None:
        """An operator has accepted the store in this history on this node: forget what was remembered of another one.

        ``acceptance`` is its id, which is no news when the store is seen again.
        """
        self._memory = None
        self._listed = (self._listed or frozenset()) | {acceptance}
        self.why = ""
        self.history = found
        self._moved(NodeEvent.ACCEPTED)
        self._wake.set()

    async def leave(self) -> None:
        """End the lease and delete the row, for a stop; nobody waits for this node afterwards."""
        self._page.renew(0)
        self._moved(NodeEvent.STOPPED)
        rows = [*self._former, *([self.id] if self.id else [])]
        self.id = ""
        self._host.joined("", 0)
        if not rows:
            return
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._session.leave(rows)
        except (StoreError, TimeoutError) as error:
            _log.warning("the row of this node could not be deleted; changes wait for its lease to end", error=error)
