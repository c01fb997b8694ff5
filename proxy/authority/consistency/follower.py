"""Following the store's changes: raises the page, acknowledges, and pushes the changed keys to the workers.

Rules of this module:
1. A notification is a hint. The head is read, the page is raised to it, and only then is it acknowledged.
2. The raised page is all that an acknowledgement promises: from then on no worker decides from a cache that has not
   applied the change. Pushing the keys only makes that fast, and never delays an acknowledgement.
3. One acknowledgement is on its way at a time, of the highest number: it covers all before it.
4. Keys are pushed from the last pushed number on, by this module only, so that no other node's change is skipped. Where
   they cannot be listed, the workers see a gap, request the changes themselves and get a reset.
5. Only the store that the node follows is followed: one that was put in its place raises no page before it is judged.
6. The head is also read without a notification, every ``look`` seconds: notifications may be lost, or not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from proxy.authority.grants.page_writer import PageWriter
from proxy.authority.workers.broadcast import Broadcast
from proxy.core.errors import StoreUnavailable
from proxy.observe import defects
from proxy.observe.logs import get_logger
from proxy.store.nodes.records import FeedHead
from proxy.store.nodes.sessions import NodeSession
from proxy.store.records import Changes

RETRY_SECONDS: Final = 0.05
POLL_SECONDS: Final = 0.02
"""How often the head is read where there are no notifications."""
LOOK_SECONDS: Final = 1.0
"""How often it is read beside them."""

_log = get_logger("authority.follower")

ChangesSince = Callable[[int], Awaitable[Changes]]
"""The keys changed after a number (``Store.changes_since``). Raises StoreUnavailable."""


class Follower:
    """Two tasks: one raises and acknowledges, the other pushes."""

    def __init__(
        self,
        session: NodeSession,
        page: PageWriter,
        broadcast: Broadcast,
        *,
        changes_since: ChangesSince,
        history: Callable[[], str],
        replaced: Callable[[], None],
        read: Callable[[FeedHead], None] = lambda _head: None,
        look: float = LOOK_SECONDS,
    ) -> None:
        """``history`` is the one that is followed ("": none); ``replaced`` is called when another one is found.

        ``read`` is called with each head of the one that is followed. ``look``: seconds between two readings of the
        head without a notification.
        """
        self._session = session
        self._page = page
        self._broadcast = broadcast
        self._changes_since = changes_since
        self._history = history
        self._replaced = replaced
        self._read = read
        self._look = look
        self._node = ""
        self._acknowledged = 0
        self._wake = asyncio.Event()
        self._announce = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self.number = 0
        """The newest change that was read from the head, with its mark."""
        self.bound = 0.0
        """The longest lease of any node, in seconds, at the last reading."""
        session.on_notify = self._wake.set

    def start(self) -> None:
        """Start following; what is on the page already counts as pushed."""
        acknowledging = asyncio.create_task(self._acknowledge(), name="follow the store")
        acknowledging.add_done_callback(defects.noted)
        pushing = asyncio.create_task(self._push(), name="push changes")
        pushing.add_done_callback(defects.noted)
        self._tasks = (acknowledging, pushing)

    async def failed(self) -> None:
        """Return when one of the tasks has ended. Raises what it raised: a node without them acknowledges nothing."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def close(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def joined(self, node: str, acknowledged: int) -> None:
        """Acknowledge as ``node`` from now on ("": not at all); the store has ``acknowledged`` of it."""
        self._node = node
        self._acknowledged = acknowledged
        if node and acknowledged < self._page.epoch:
            self._wake.set()

    def saw(self, number: int) -> None:
        """Raise the page to a change that is certainly committed, before anything that depends on it is answered."""
        if not self._history():
            return
        if number > self._page.epoch:
            self._page.raise_epoch(number)
            self._wake.set()
        if self._page.epoch > self._broadcast.pushed:
            self._announce.set()

    def look(self) -> None:
        """Read the head soon."""
        self._wake.set()

    async def _acknowledge(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look):
                    await self._wake.wait()
            self._wake.clear()
            followed = self._history()
            if not followed:
                continue
            try:
                head = await self._session.head()
                if head.history != followed:
                    self._replaced()
                    continue
                self.bound = head.bound
                self.saw(head.n)
                self.number = max(self.number, head.n)
                self._read(head)
                node, reached = self._node, self._page.epoch
                if node and self._acknowledged < reached:
                    await self._session.acknowledge(node, reached)
                    if node == self._node:
                        self._acknowledged = reached
            except StoreUnavailable:
                # The lease shows it; the node that keeps it logs it.
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def _push(self) -> None:
        while True:
            await self._announce.wait()
            self._announce.clear()
            since = self._broadcast.pushed
            try:
                changes = await self._changes_since(since)
            except StoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
                self._announce.set()
                continue
            if changes.epoch > since:
                self._page.raise_epoch(changes.epoch)
                self._broadcast.push(since if changes.complete else changes.epoch, changes.epoch, changes.keys)
