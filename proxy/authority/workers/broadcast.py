"""Change broadcast: raises the page's epoch after a commit and pushes the changed keys to the workers.

Rules of this module:
1. The page's epoch is raised first, synchronously: afterwards no decision is made from a cache that has not applied the
   change. The push to the links only makes applying it fast.
2. Both happen before the caller of the change gets its answer; neither can fail the change, which is already committed.
3. In a store that other nodes change too, the page is raised alone (``consistency.follower``), and the keys are pushed
   afterwards, from the last pushed number on. A worker that sees a gap requests the changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.authority.grants.page_writer import PageWriter
from proxy.core.errors import WireError
from proxy.core.ipc.wire import frame

Sender = Callable[[bytes], None]
"""Takes a framed message; must not block."""


class Broadcast:
    """Raises the page's epoch and pushes the changed keys to every link."""

    def __init__(self, page: PageWriter, *, counted: Callable[[int], None]) -> None:
        self._page = page
        self._counted = counted
        self.pushed = page.epoch
        """The number up to which changes were pushed, or need no push."""
        self._senders: dict[object, Sender] = {}

    @property
    def epoch(self) -> int:
        """The last epoch that was announced."""
        return self._page.epoch

    def join(self, link: object, send: Sender) -> None:
        """Push changes to ``link`` from now on."""
        self._senders[link] = send

    def leave(self, link: object) -> None:
        """Push no more changes to ``link``."""
        self._senders.pop(link, None)

    async def on_commit(self, epoch: int, keys: Sequence[str]) -> None:
        """Announce a commit; the store calls this after each."""
        since = self._page.epoch
        self._page.raise_epoch(epoch)
        if epoch > since:
            self.push(since, epoch, keys)

    def push(self, since: int, epoch: int, keys: Sequence[str]) -> None:
        """Push the keys that were changed after ``since``, up to ``epoch``, which is on the page already."""
        self._counted(epoch - self.pushed)
        self.pushed = epoch
        try:
            message = frame({"push": "changes", "since": since, "epoch": epoch, "keys": list(keys)})
        except WireError:
            return  # too many keys for one frame: the workers see the epoch, request the changes and get a reset
        for send in tuple(self._senders.values()):
            send(message)
