"""Telling the workers of a commit.

Rules of this module:
1. The page's epoch is raised first, synchronously, before anything else can run: from then on no decision is made
   from a cache that has not applied the change. The push to the links only makes that quick.
2. Both happen before the caller of the change has its answer; neither can fail the change, which is committed already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.authority.grants.shared_memory import PageWriter
from proxy.core.errors import WireError
from proxy.core.ipc.wire import frame

Sender = Callable[[bytes], None]
"""Takes a framed message; must not block."""


class Broadcast:
    """Raises the page's epoch and pushes the keys that changed to every link."""

    def __init__(self, page: PageWriter, *, counted: Callable[[int], None]) -> None:
        self._page = page
        self._counted = counted
        self._senders: dict[object, Sender] = {}

    @property
    def epoch(self) -> int:
        """The last epoch that was announced."""
        return self._page.epoch

    def join(self, link: object, send: Sender) -> None:
        self._senders[link] = send

    def leave(self, link: object) -> None:
        self._senders.pop(link, None)

    async def on_commit(self, epoch: int, keys: Sequence[str]) -> None:
        """The store's callback after each commit."""
        since = self._page.epoch
        self._page.raise_epoch(epoch)
        if epoch <= since:
            return
        self._counted(epoch - since)
        try:
            message = frame({"push": "changes", "since": since, "epoch": epoch, "keys": list(keys)})
        except WireError:
            return  # too many keys for one frame: the workers see the page, ask, and are told to forget everything
        for send in tuple(self._senders.values()):
            send(message)
