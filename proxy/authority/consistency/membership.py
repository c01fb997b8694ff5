"""This authority among the nodes of a shared store: the parts of the protocol, put together.

Rules of this module:
1. Nothing is written to a store before it is judged. A refused store is only read, until an operator accepts it.
2. The lease bound is raised, as a change, before this node may hold a longer lease.
3. An operator's acceptance is an audited change whose answer waits for the longest lease: rows of nodes that hold one
   may be missing from the accepted store. All numbers then continue above those that this node has seen, and every
   cache drops everything. Until then nothing else is read from the refused store, or written to it.
4. A command that works on the store by itself is no node: it holds no lease, and waits for the nodes like any other.
5. A node whose tasks do not all run must not stay: it would hold a lease and acknowledge nothing. ``run`` ends then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from proxy.authority.consistency import memory
from proxy.authority.consistency.barrier import Barrier
from proxy.authority.consistency.follower import LOOK_SECONDS, POLL_SECONDS, Follower
from proxy.authority.consistency.node import Node, NodeEvent
from proxy.authority.grants.page_writer import PageWriter
from proxy.authority.workers.broadcast import Broadcast
from proxy.core.errors import Conflict, StoreError, StoreUnavailable
from proxy.core.model import Actor, ActorKind
from proxy.observe import defects
from proxy.observe.logs import get_logger
from proxy.services.nodes import NodeView
from proxy.store.feed import Head
from proxy.store.nodes import history
from proxy.store.nodes.asking import Judge
from proxy.store.nodes.records import AcceptedBy, NodeRow, Remembered
from proxy.store.nodes.sessions import MemberPoll, NodeSession
from proxy.store.recording import Admit
from proxy.store.store import Store

ACCEPTED: Final = "account.store.accept_history"
"""The action of the audit event for an accepted history; its details say which change the store had."""
LEASE_RAISED: Final = "account.store.raise_lease"
"""The action of the audit event for a longer lease bound."""
PROTOCOL_ACTOR: Final = Actor(kind=ActorKind.SYSTEM, id="node", name="node")
STORE_KEY: Final = "store:history"
"""The dependency key of changes that concern the whole store; no grant depends on it."""
JOIN_SECONDS: Final = 5.0
"""How long a start waits for its first lease before it lets the workers start without one."""

_log = get_logger("authority.membership")


class Membership:
    """Opened with ``open``, which judges the store; ``start`` joins; ``run`` renews; ``close`` leaves."""

    def __init__(
        self,
        store: Store,
        page: PageWriter,
        broadcast: Broadcast,
        sessions: tuple[NodeSession, MemberPoll],
        row: NodeRow,
        data_dir: Path,
        *,
        listen: bool,
        trust_standby: bool,
        owned: Callable[[], bool],
        timed: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """``row`` is this node without an id. ``listen`` and ``trust_standby`` as in the settings."""
        self._store = store
        self._page = page
        self._broadcast = broadcast
        self._row = row
        self._data_dir = data_dir
        self._session, self._poll = sessions
        self._follower = Follower(
            self._session,
            page,
            broadcast,
            changes_since=store.changes_since,
            history=lambda: self.history,
            replaced=self.look,
            read=lambda head: self._node.read(head),
            look=LOOK_SECONDS if listen else POLL_SECONDS,
        )
        self._trust_standby = trust_standby
        self._owned = owned
        self._barrier = Barrier(self._poll, self, timed=timed)
        self._node: Node
        self._saving: asyncio.Task[None] | None = None
        self._to_save: Remembered | None = None
        self._save_failed = False
        self._recording: asyncio.Task[None] | None = None
        self._leases = asyncio.Lock()
        self._followed = asyncio.Event()

    # --- the authority's side ---

    async def open(self) -> None:
        """Connect, judge the store, and follow it. Raises StoreError if it cannot be reached."""
        known = await asyncio.to_thread(memory.load, self._data_dir)
        self._node = Node(
            self._row,
            self._session,
            self._page,
            self,
            memory=known,
            trust_standby=self._trust_standby,
            owned=self._owned,
        )
        self._store.known = self._barrier.wait
        self._store.admit = self._admit
        self._store.ask = self._ask
        seen = await self._node.judge_store()
        self.saw(seen.n)
        self._follower.number = seen.n
        self._broadcast.pushed = self._page.epoch
        if not self.fenced:
            self.followed()
        self._follower.start()

    @property
    def fenced(self) -> str:
        """Why this node refuses the store, a sentence; "" if it does not."""
        return self._node.why

    async def allow_lease(self, lease: float) -> None:
        """Raise the lease bound to ``lease`` seconds, if it is shorter. Raises StoreError."""
        async with self._leases:
            if self._node.bound >= lease or self.fenced:
                return
            async with self._store.change(PROTOCOL_ACTOR) as change:
                if await history.raise_bound(change.connection, lease):
                    change.touched(STORE_KEY)
                    change.audit(
                        LEASE_RAISED,
                        target_kind="store",
                        target_id=self._store.store_id,
                        details={"lease": lease, "before": self._node.bound},
                    )
            self._node.bound = max(self._node.bound, lease)

    async def start(self) -> None:
        """Join and take the first lease; a store that cannot be reached now leaves that to ``run``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_SECONDS):
                while await self._node.step() not in (
                    NodeEvent.RENEWED,
                    NodeEvent.UNREACHABLE,
                    NodeEvent.UNKNOWN_STORE,
                ):
                    pass

    async def run(self) -> None:
        """Keep the lease until cancelled; returns when the data directory is lost.

        Raises what one of the tasks raised that a node cannot be without (rule 5).
        """
        leasing = asyncio.create_task(self._node.run(), name="keep the lease")
        watching = asyncio.create_task(self._follower.failed(), name="watch the follower")
        try:
            done, _ = await asyncio.wait((leasing, watching), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            leasing.cancel()
            watching.cancel()
            await asyncio.gather(leasing, watching, return_exceptions=True)

    def last(self, lease: float) -> None:
        """Use a lease of ``lease`` seconds from now on, as far as the bound permits."""
        self._node.set_lease(lease)

    def look(self) -> None:
        """Renew now."""
        self._node.look()

    def remaining(self) -> float:
        """Seconds until the lease runs out; 0 when it has."""
        return self._node.remaining()

    async def close(self) -> None:
        """End the lease, delete the row, stop following, and close the connections."""
        await self._node.leave()
        if self._recording is not None:
            self._recording.cancel()
            await asyncio.gather(self._recording, return_exceptions=True)
        if self._saving is not None:
            await asyncio.gather(self._saving, return_exceptions=True)
        await self._barrier.close()
        await self._follower.close()
        await self._session.close()
        await self._poll.close()

    @property
    def clock_offset(self) -> float:
        """Seconds by which the database's clock is ahead of this host's, as last measured."""
        return self._node.offset

    def unready(self) -> Mapping[str, str]:
        """Why requests cannot be served, by check."""
        reasons: dict[str, str] = {}
        if self.fenced:
            reasons["fenced"] = self.fenced
        elif not self._node.id:
            reasons["node"] = "this node has not joined the nodes of its store"
        return reasons

    def describe(self, row: NodeRow) -> None:
        """Show this node with the configuration of ``row`` from now on."""
        self._row = row

    async def nodes(self) -> list[NodeView]:
        """All nodes of the store; writes what has changed of this one since it joined. Raises StoreUnavailable."""
        own, row, listed = self._node.id, self._row, await self._poll.nodes()
        if any(one.row.id == own and _description(one.row) != _description(row) for one in listed):
            await self._poll.describe(own, row.config_hash, row.lease)
            listed = await self._poll.nodes()
        return [
            NodeView(
                id=one.row.id,
                name=one.row.name,
                version=one.row.version,
                schema=one.row.schema,
                applied=self._page.epoch if one.row.id == own else one.applied,
                lease=one.row.lease,
                lease_seconds=max(0.0, one.row.lease - one.age),
                started_at=one.row.started_at,
                config_hash=one.row.config_hash,
                config_matches=one.row.config_hash == self._row.config_hash,
                self=one.row.id == own,
            )
            for one in listed
        ]

    async def accept(self, actor: Actor) -> None:
        """Accept the store as it is, for ``actor``. Raises Conflict if it is not refused, and StoreError."""
        if not self.fenced:
            raise Conflict("this node does not refuse its store: there is nothing to accept")
        seen = await self._session.renew("", None)
        page = self._page.epoch
        async with self._store.change(actor, admit=self._acceptance(seen.history)) as change:
            await self._store.begin_history(change.connection)
            if await history.needs_new_numbers(change.connection, page):
                change.start_over(page)
            id_ = await history.accept(change.connection, seen.history, AcceptedBy.OPERATOR)
            change.touched(STORE_KEY)
            change.audit(
                ACCEPTED,
                target_kind="store",
                target_id=self._store.store_id,
                details={"seen": page, "found": seen.n},
            )
        self._node.accepted(seen.history, id_)
        _log.warning("the store was accepted as it is: every cache is dropped", seen=page, found=seen.n)

    def _admit(self, head: Head | None) -> None:
        """``Store.admit``: no change of a store that is refused, or that is not judged yet."""
        if self.fenced:
            raise StoreUnavailable(f"this node is fenced and makes no changes: {self.fenced}")
        if head is not None:
            self._require_followed(head.history)
            self._barrier.saw_bound(head.bound)

    def _acceptance(self, found: str) -> Admit:
        """``Store.admit`` for the acceptance of the store in this history, while this node refuses it."""

        def admit(head: Head | None) -> None:
            if head is None:
                return
            if not found.endswith(f"/{head.history}"):
                raise StoreUnavailable("the store was replaced by another one while it was accepted")
            self._barrier.saw_bound(head.bound)

        return admit

    def _ask(self) -> Judge:
        """``Store.ask``: nothing is read or written but in the store that is followed, with all that was seen of it."""
        if self.fenced:
            raise StoreUnavailable(f"this node is fenced: {self.fenced}")
        page = self._page.epoch

        def judge(number: int, found: str) -> None:
            self._require_followed(found)
            if number < page:
                self.look()
                raise StoreUnavailable("the store lacks changes that this node has seen")

        return judge

    def _require_followed(self, found: str) -> None:
        """Raise StoreUnavailable if this history is not the one that is followed.

        A pooled connection may reach another database before the session does, and before it is judged.
        """
        if self.fenced:
            raise StoreUnavailable(f"this node is fenced: {self.fenced}")
        if not self.history.endswith(f"/{found}"):
            self.look()
            raise StoreUnavailable("the store was replaced by another one, which this node has not judged yet")

    # --- Host of the node, OwnNode of the barrier ---

    @property
    def id(self) -> str:
        """The id of this node's row; "" without one."""
        return self._node.id

    @property
    def history(self) -> str:
        """The history of the store that this node follows; "" while it refuses to."""
        return self._node.history

    @property
    def applied(self) -> int:
        """The number that the follower has read and raised the page to: the node also knows that change by its mark."""
        return self._follower.number

    @property
    def bound(self) -> float:
        """The longest lease of any node in seconds, as last read; 0 if it never was."""
        return max(self._node.bound, self._follower.bound)

    def saw(self, number: int) -> None:
        """Raise the page to a committed change, acknowledge it, and push what changed."""
        self._follower.saw(number)

    def joined(self, node: str, acknowledged: int) -> None:
        """Acknowledge as ``node`` from now on ("": as none); the store has ``acknowledged`` of it."""
        self._follower.joined(node, acknowledged)

    def suspect(self) -> None:
        """The store is another one: no wait ends before the leases of the former one are over."""
        self._barrier.suspect()

    def followed(self) -> None:
        """The store is followed."""
        self._followed.set()

    async def until_followed(self) -> None:
        """Return once the store has been followed."""
        await self._followed.wait()

    async def start_over(self, found: str, seen: int) -> None:
        """Let the numbers of the store in this history continue above ``seen``, and every cache drop everything.

        Raises StoreError.
        """
        async with self._store.change(PROTOCOL_ACTOR, admit=self._acceptance(found)) as change:
            await self._store.begin_history(change.connection)
            if await history.needs_new_numbers(change.connection, seen):
                change.start_over(seen)
                change.touched(STORE_KEY)
                change.audit(
                    ACCEPTED, target_kind="store", target_id=self._store.store_id, details={"seen": seen, "by": "node"}
                )

    def record(self, found: str, by: AcceptedBy) -> None:
        """Record in the background that the store is in this history."""
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record(found, by), name="record the store's history")
            self._recording.add_done_callback(defects.noted)

    async def _record(self, found: str, by: AcceptedBy) -> None:
        try:
            if by is AcceptedBy.CREATION:
                await self._store.record_creation(found)
                return
            async with self._store.change(PROTOCOL_ACTOR) as change:
                if await history.accept(change.connection, found, by):
                    change.touched(STORE_KEY)
                    change.audit(
                        ACCEPTED, target_kind="store", target_id=self._store.store_id, details={"by": by.value}
                    )
        except (StoreError, Conflict) as error:
            # The next renewal asks for it again.
            _log.warning("the store's history could not be recorded", error=error)

    def remember(self, remembered: Remembered) -> None:
        """Write to disk what the node remembers, in the background; only the newest is written."""
        self._to_save = remembered
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save(), name="remember the store")
            self._saving.add_done_callback(defects.noted)

    async def _save(self) -> None:
        while (remembered := self._to_save) is not None:
            self._to_save = None
            try:
                await asyncio.to_thread(memory.save, self._data_dir, remembered)
            except OSError as error:
                if not self._save_failed:
                    _log.warning("what this node has seen of its store could not be written to disk", error=error)
                self._save_failed = True
                self._node.not_saved()
            except Exception:
                # A defect of any kind, raised again to be reported: the next renewal asks for it again.
                self._node.not_saved()
                raise
            else:
                self._save_failed = False


def _description(row: NodeRow) -> tuple[str, float]:
    return row.config_hash, row.lease
