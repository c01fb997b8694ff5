"""A process that stands by for each kind of child, so that a dead one is replaced without the time that loading takes.

Rules (what the spare itself keeps to is in ``proxy.standby``):

1. There is one spare of a kind at most. The first is started a moment after the gateway has started, the next when the
   process that took its place is ready or has failed.
2. Only a spare that has said that it stands by is given orders; before that, a new process is as quick.
3. A spare is a convenience: one that cannot be started or dies is said once and tried again after a while, and no slot
   counts that as a death of its own.
"""

import asyncio
import os
import signal
from typing import Final

from proxy.observe import defects
from proxy.observe.logs import Logger
from proxy.supervisor.processes import STDERR_FD, Child, ChildSpec

AGAIN_SECONDS: Final = 10.0
"""How long after a spare that died another one is started."""
FIRST_SECONDS: Final = 2.0
"""How long after a start the first spare is started: until then what serves has the processor for itself."""


class Spares:
    """Keeps one spare of a kind: ``keep`` until ``end``."""

    def __init__(self, spec: ChildSpec, log: Logger, stderr_fd: int = STDERR_FD) -> None:
        self._spec = spec
        self._log = log.bind(child=spec.name)
        self._stderr_fd = stderr_fd
        self._child: Child | None = None
        self._orders = -1
        self._stands_by = False
        self._outdated = False
        self._taken = asyncio.Event()
        self._wanted = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The spare that stands by now; ``None`` while there is none or it has yet to load."""
        return self._child.pid if self._child is not None and self._stands_by else None

    def take(self, spec: ChildSpec) -> Child | None:
        """The spare, on its way to be what ``spec`` describes; ``None`` when none stands by."""
        child = self._child
        if child is None or not self._stands_by:
            return None
        self._stands_by = False
        try:
            child.order(spec, self._orders)
        except OSError:
            return None  # it has died just now, which ``keep`` will find out
        self._child = None
        self._close_orders()
        self._wanted.clear()
        self._taken.set()
        return child

    def refill(self) -> None:
        """What took the spare's place is up: start the next one."""
        self._wanted.set()

    async def replace(self, spec: ChildSpec) -> None:
        """Have a spare that has loaded what this one says, from now on: what stands by is of no use any more."""
        self._spec = spec
        self._outdated = self._child is not None
        await self.end()

    async def keep(self, *, after: float = 0.0) -> None:
        """Have a spare from now on, the first one so many seconds later, until cancelled."""
        if after:
            await asyncio.sleep(after)
        while True:
            try:
                was_taken = await self._have_one()
            except OSError as error:
                self._log.warning("spare cannot be started", error=error, again_in=AGAIN_SECONDS)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if was_taken:
                await self._wanted.wait()
            elif self._outdated:
                self._outdated = False
            else:
                self._log.warning("spare ended", again_in=AGAIN_SECONDS)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _have_one(self) -> bool:
        """Start one and wait until it is taken; false when it ended without that. Raises ``OSError``."""
        self._taken.clear()
        wanted = self._spec
        orders_in, self._orders = os.pipe()
        try:
            command = (*wanted.command, "--orders-fd", str(orders_in))
            spec = ChildSpec(
                name=wanted.name,
                command=command,
                fds=(*wanted.fds, orders_in),
                lifeline_fd=wanted.lifeline_fd,
            )
            child = await Child.spawn(spec, self._stderr_fd)
        except OSError:
            self._close_orders()
            raise
        finally:
            os.close(orders_in)
        self._child = child
        # Replaced while it was being started: its orders have been closed, and it ends.
        self._outdated = self._spec is not wanted
        self._stands_by = await child.stands_by()
        if self._stands_by:
            self._log.info("spare stands by", child_pid=child.pid)
        ended = asyncio.create_task(child.ended(), name="spare ended")
        ended.add_done_callback(defects.noted)
        taken = asyncio.create_task(self._taken.wait(), name="spare taken")
        try:
            await asyncio.wait((ended, taken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, taken):
                task.cancel()
        if self._taken.is_set():
            return True
        await self.end()
        return False

    async def end(self) -> None:
        """End the spare, if there is one."""
        self._stands_by = False
        child, self._child = self._child, None
        self._close_orders()
        if child is not None:
            child.send(signal.SIGKILL)
            await child.ended()
            child.let_go()

    def _close_orders(self) -> None:
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1
