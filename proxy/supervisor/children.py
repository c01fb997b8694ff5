"""Child processes of a gateway: starts, reloads, drains and ends the authority, the workers and their spares."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from proxy.core.ipc.child_protocol import CommandName, CommandRefused
from proxy.observe.logs import Logger
from proxy.settings.model import Settings
from proxy.supervisor.child import Child
from proxy.supervisor.config_generation import Generation, StartContext
from proxy.supervisor.errors import StartError
from proxy.supervisor.keeper import Gate, Keeper
from proxy.supervisor.reload import Reload, close_others
from proxy.supervisor.standby import FIRST_SECONDS, Spares

LOADED_SECONDS = 120.0
"""How long a start waits for the first authority to load the control plane before it completes without it."""
RETIRE_MARGIN_SECONDS = 5.0
"""How much longer than ``timeouts.drain`` a surplus worker may take before it is killed."""


class Children:
    """The children that run ``generation``, which ``reload`` replaces. ``hopeless`` is the authority's (``Keeper``)."""

    def __init__(self, generation: Generation, log: Logger, stderr_fd: int, *, hopeless: Callable[[int], bool]) -> None:
        self.generation = generation
        self._log = log
        self._stderr_fd = stderr_fd
        self._gate = Gate()
        self._starting = True
        self._draining = False
        self._reload_ok = True
        self._reload_time = 0.0
        self._group: asyncio.TaskGroup | None = None
        self._keeping: list[asyncio.Task[None]] = []
        self._spare_authority = Spares(generation.spare_authority(), log, stderr_fd)
        self._spare_worker = Spares(generation.spare_worker(), log, stderr_fd)
        self.authority = Keeper(
            generation.authority(),
            log,
            stderr_fd,
            spares=self._spare_authority,
            hopeless=hopeless,
            gate=self._gate,
            on_ready=self._send_state,
        )
        self.workers = [self._worker(slot) for slot in range(generation.settings.workers)]
        self._retiring: list[Keeper] = []

    async def start(self) -> None:
        """Start the authority, then the workers. Raises ``StartupRefused``."""
        await self.authority.start()
        results = await asyncio.gather(*(worker.start() for worker in self.workers), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._starting = False
        if (child := self.authority.serving) is not None:
            # It answers once it has loaded everything; until then its decisions are slow. If it dies, it is replaced.
            with suppress(CommandRefused):
                await child.channel.ask(CommandName.STATE, seconds=LOADED_SECONDS, **self._state())

    def keep(self, group: asyncio.TaskGroup) -> None:
        """Replace children that die from now on, in tasks of ``group``."""
        self._group = group
        group.create_task(self.authority.keep(), name="keep authority")
        for worker in self.workers:
            group.create_task(worker.keep(), name=f"keep {worker.spec.name}")
        self._keeping = [
            group.create_task(spares.keep(after=FIRST_SECONDS), name="keep spare")
            for spares in (self._spare_authority, self._spare_worker)
        ]

    def kill_hung(self) -> None:
        """Kill children that hang; their keepers replace them."""
        for keeper in (self.authority, *self.workers):
            keeper.kill_if_hung()

    def report_state(self, *, draining: bool | None = None, reload_ok: bool | None = None) -> None:
        """Report the gateway's state to the authority, and to its successors when they are ready."""
        if draining is not None:
            self._draining = draining
        if reload_ok is not None:
            self._reload_ok = reload_ok
            self._reload_time = time.time() if reload_ok else self._reload_time
        if (child := self.authority.serving) is not None:
            self._send_state(child)

    async def reload(self, settings: Settings, context: StartContext) -> Generation:
        """Change every process to ``settings``. Raises ``StartError`` when all still run the former configuration."""
        async with self._gate.reloading():
            before = self.generation
            reload = Reload(before, settings, context, self._log, authority=self.authority, workers=self.workers)
            self.generation = new = await reload.run()
            # They have loaded the former configuration.
            await self._spare_authority.replace(new.spare_authority())
            await self._spare_worker.replace(new.spare_worker())
            close_others(before.listeners, new.listeners)
            before.close()
        await self._scale(settings.workers)
        return new

    async def _scale(self, count: int) -> None:
        """Start missing workers and let surplus ones drain; does nothing once the gateway drains."""
        if self._draining:
            return
        assert self._group is not None  # noqa: S101 - ``reload`` runs after ``keep``
        surplus, self.workers = self.workers[count:], self.workers[:count]
        if surplus:
            self.report_state()  # before they end: the expected number is lower
        for keeper in surplus:
            self._retiring.append(keeper)
            self._group.create_task(self._retire(keeper), name=f"retire {keeper.spec.name}")
        added = [self._worker(slot) for slot in range(len(self.workers), count)]
        self.workers += added
        for keeper, outcome in zip(
            added, await asyncio.gather(*(keeper.start() for keeper in added), return_exceptions=True), strict=True
        ):
            if isinstance(outcome, StartError):
                self._log.error("worker does not start yet", child=keeper.spec.name, problem=outcome)
            elif outcome is not None:
                raise outcome
            self._group.create_task(keeper.keep(), name=f"keep {keeper.spec.name}")

    async def _retire(self, keeper: Keeper) -> None:
        await keeper.stop(self.generation.settings.timeouts.drain + RETIRE_MARGIN_SECONDS)
        self._retiring.remove(keeper)

    @property
    def started(self) -> bool:
        """Whether every child was started; the authority may still be loading the control plane."""
        return not self._starting

    async def abort_starts(self) -> None:
        """Kill the workers that are not ready, so that they do not delay the end of a reload and the stop.

        Reloads that have not begun are refused.
        """
        await self._gate.close()
        for keeper in self.workers:
            if keeper.serving is None:
                keeper.kill()

    def leave(self) -> None:
        """Let the workers close each client connection after its next response."""
        for keeper in self.workers:
            if (child := keeper.serving) is not None:
                child.channel.tell(CommandName.LEAVE)

    async def stop_workers(self, seconds: float) -> None:
        """Let all workers drain, and kill them after ``seconds``."""
        await asyncio.gather(*(worker.stop(seconds) for worker in (*self.workers, *self._retiring)))

    async def end_spares(self) -> None:
        """End the spares and start no others."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await asyncio.gather(self._spare_authority.end(), self._spare_worker.end())

    def kill(self) -> None:
        """Kill every serving process without replacing it."""
        for keeper in (*self.workers, *self._retiring, self.authority):
            keeper.kill()

    async def end(self) -> None:
        """Kill every process, wait until all have ended, and close the generation."""
        self.kill()
        await asyncio.gather(*(keeper.end() for keeper in (*self.workers, *self._retiring, self.authority)))
        await asyncio.gather(self._spare_authority.end(), self._spare_worker.end())
        self.generation.close()

    def _worker(self, slot: int) -> Keeper:
        return Keeper(
            self.generation.worker(slot), self._log, self._stderr_fd, spares=self._spare_worker, gate=self._gate
        )

    def _send_state(self, authority: Child) -> None:
        authority.channel.tell(CommandName.STATE, **self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "starting": self._starting,
            "draining": self._draining,
            "workers": len(self.workers),
            "reload_ok": self._reload_ok,
            "reload_time": self._reload_time,
        }
