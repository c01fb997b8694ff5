"""All children of a gateway: the authority, the workers, and the spares that stand by for them."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from proxy.core.ipc.child_protocol import CommandName, CommandRefused
from proxy.observe.logs import Logger
from proxy.settings.model import Settings
from proxy.supervisor.config_generation import Generation, Ground
from proxy.supervisor.errors import StartError
from proxy.supervisor.processes import Child, Gate, Keeper
from proxy.supervisor.reload import Crew, Turn, close_others
from proxy.supervisor.standby import FIRST_SECONDS, Spares

LOADED_SECONDS = 120.0
"""How long the first authority may take to load the control plane before the start is complete without it."""
RETIRE_MARGIN_SECONDS = 5.0
"""How much longer than ``timeouts.drain`` a worker that is too many may take before it is killed."""


class Fleet:
    """The children that run ``generation``, which ``turn`` exchanges. ``hopeless`` is as in ``Keeper``, for the
    authority.
    """

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
            on_ready=self._introduce,
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
            # Its answer comes once it has loaded everything; until then its decisions are slow. One that dies instead
            # is replaced.
            with suppress(CommandRefused):
                await child.line.ask(CommandName.STATE, seconds=LOADED_SECONDS, **self._standing())

    def keep(self, group: asyncio.TaskGroup) -> None:
        """Replace whatever dies, from now on, in tasks of ``group``."""
        self._group = group
        group.create_task(self.authority.keep(), name="keep authority")
        for worker in self.workers:
            group.create_task(worker.keep(), name=f"keep {worker.spec.name}")
        self._keeping = [
            group.create_task(spares.keep(after=FIRST_SECONDS), name="keep spare")
            for spares in (self._spare_authority, self._spare_worker)
        ]

    def look(self) -> None:
        """End what hangs."""
        for keeper in (self.authority, *self.workers):
            keeper.look()

    def show(self, *, draining: bool | None = None, reload_ok: bool | None = None) -> None:
        """Have the authority show this of the gateway, and its successors too."""
        if draining is not None:
            self._draining = draining
        if reload_ok is not None:
            self._reload_ok = reload_ok
            self._reload_time = time.time() if reload_ok else self._reload_time
        if (child := self.authority.serving) is not None:
            self._introduce(child)

    async def turn(self, settings: Settings, ground: Ground) -> Generation:
        """Have every process run on ``settings`` instead. Raises ``StartError`` when all still run as before."""
        async with self._gate.reloading():
            before = self.generation
            crew = Crew(authority=self.authority, workers=self.workers)
            self.generation = new = await Turn(before, settings, ground, crew, self._log).take()
            # Not to be taken any more: they have loaded the configuration of before.
            await self._spare_authority.replace(new.spare_authority())
            await self._spare_worker.replace(new.spare_worker())
            close_others(before.listeners, new.listeners)
            before.close()
        await self._fit(settings.workers)
        return new

    async def _fit(self, count: int) -> None:
        """Start the workers that are missing, and let those drain that are too many; nothing of it before the end."""
        if self._draining:
            return
        assert self._group is not None  # noqa: S101 - nobody reloads before ``keep``
        surplus, self.workers = self.workers[count:], self.workers[:count]
        if surplus:
            self.show()  # before they go: fewer are wanted
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
        """Whether everything was started, though the authority may have some of itself to load."""
        return not self._starting

    async def give_up_starting(self) -> None:
        """End the workers that are not ready: one that cannot be must not hold up the end of a reload, and of all.

        A reload that has yet to begin is refused.
        """
        await self._gate.close()
        for keeper in self.workers:
            if keeper.serving is None:
                keeper.kill()

    def leave(self) -> None:
        """Have every answer of the workers close its connection."""
        for keeper in self.workers:
            if (child := keeper.serving) is not None:
                child.line.tell(CommandName.LEAVE)

    async def stop_workers(self, seconds: float) -> None:
        """Let all workers drain, for at most so long each."""
        await asyncio.gather(*(worker.stop(seconds) for worker in (*self.workers, *self._retiring)))

    async def end_spares(self) -> None:
        """Have nobody stand by any more."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await asyncio.gather(self._spare_authority.end(), self._spare_worker.end())

    def kill(self) -> None:
        """End every process that serves now, without replacement."""
        for keeper in (*self.workers, *self._retiring, self.authority):
            keeper.kill()

    async def end(self) -> None:
        """``kill``, and wait until all are gone; the generation is closed."""
        self.kill()
        everybody = (*self.workers, *self._retiring, self.authority)
        await asyncio.gather(*(keeper.end() for keeper in everybody))
        await asyncio.gather(self._spare_authority.end(), self._spare_worker.end())
        self.generation.close()

    def _worker(self, slot: int) -> Keeper:
        return Keeper(
            self.generation.worker(slot), self._log, self._stderr_fd, spares=self._spare_worker, gate=self._gate
        )

    def _introduce(self, authority: Child) -> None:
        authority.line.tell(CommandName.STATE, **self._standing())

    def _standing(self) -> dict[str, Any]:
        return {
            "starting": self._starting,
            "draining": self._draining,
            "workers": len(self.workers),
            "reload_ok": self._reload_ok,
            "reload_time": self._reload_time,
        }
