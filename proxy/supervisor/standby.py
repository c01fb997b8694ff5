"""Spare processes: one of each kind has loaded everything and stands by, so that it replaces a dead child at once.

Rules (the spare's own rules are in ``proxy.standby``):

1. At most one spare of each kind. The first starts some seconds after the gateway or after a reload, the next when the
   process that the last one became is ready or has failed.
2. Only a spare that has reported that it stands by gets a command; before that, a new process is as fast.
3. A spare is optional: a failed start or a death is logged once and retried after a delay, and does not count as a
   death of a child.
"""

import asyncio
import os
import signal
from typing import Final

from proxy.observe import defects
from proxy.observe.logs import Logger
from proxy.supervisor.child import STDERR_FD, Child, ChildSpec

AGAIN_SECONDS: Final = 10.0
"""Delay before the retry after a spare died or could not be started."""
FIRST_SECONDS: Final = 5.0
"""Delay of the first spare after a start or a reload: until then the serving children have the processor for
themselves, and reloads in quick succession load no spare each."""


class Spares:
    """Keeps one spare of one kind: ``keep`` until ``end``."""

    def __init__(self, spec: ChildSpec, log: Logger, stderr_fd: int = STDERR_FD) -> None:
        self._spec = spec
        self._log = log.bind(child=spec.name)
        self._stderr_fd = stderr_fd
        self._child: Child | None = None
        self._commands_fd = -1
        self._stands_by = False
        self._outdated = False
        self._taken = asyncio.Event()
        self._wanted = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process id of the spare that stands by; ``None`` without one and while it still loads."""
        return self._child.pid if self._child is not None and self._stands_by else None

    def take(self, spec: ChildSpec) -> Child | None:
        """Turn the spare into the child that ``spec`` describes and return it; ``None`` when none stands by."""
        child = self._child
        if child is None or not self._stands_by:
            return None
        self._stands_by = False
        try:
            child.assign(spec, self._commands_fd)
        except OSError:
            return None  # it has just died; ``keep`` notices
        self._child = None
        self._close_commands()
        self._wanted.clear()
        self._taken.set()
        return child

    def refill(self) -> None:
        """Start the next spare: the child that the last one became has started or failed."""
        self._wanted.set()

    async def replace(self, spec: ChildSpec) -> None:
        """End the current spare, which loaded an outdated configuration, and keep spares of ``spec`` instead."""
        self._spec = spec
        self._outdated |= self._child is not None
        await self.end()

    async def keep(self, *, after: float = 0.0) -> None:
        """Keep a spare until cancelled; the first starts ``after`` seconds from now, or from a ``replace``."""
        if after:
            await asyncio.sleep(after)
        while True:
            try:
                was_taken = await self._keep_one()
            except OSError as error:
                self._log.warning("spare cannot be started", error=error, again_in=AGAIN_SECONDS)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if was_taken:
                await self._wanted.wait()
            elif self._outdated:
                self._outdated = False
                await asyncio.sleep(after)
            else:
                self._log.warning("spare ended", again_in=AGAIN_SECONDS)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _keep_one(self) -> bool:
        """Start a spare and wait until it is taken; false when it ends before. Raises ``OSError``."""
        self._taken.clear()
        wanted = self._spec
        commands_in, self._commands_fd = os.pipe()
        try:
            spec = ChildSpec(
                name=wanted.name,
                command=(*wanted.command, "--orders-fd", str(commands_in)),
                fds=(*wanted.fds, commands_in),
                lifeline_fd=wanted.lifeline_fd,
            )
            child = await Child.spawn(spec, self._stderr_fd)
        except OSError:
            self._close_commands()
            raise
        finally:
            os.close(commands_in)
        self._child = child
        # After a ``replace`` during the start its command pipe is closed, and it ends.
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
        """End the spare, if any."""
        self._stands_by = False
        child, self._child = self._child, None
        self._close_commands()
        if child is not None:
            child.send(signal.SIGKILL)
            await child.ended()
            child.close_ready_pipe()

    def _close_commands(self) -> None:
        if self._commands_fd >= 0:
            os.close(self._commands_fd)
            self._commands_fd = -1
