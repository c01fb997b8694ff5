"""One gateway, from the lock to the last exit.

Order of a start: lock, sockets, authority, workers, addresses, spares. Order of a stop: readiness off, a while for load
balancers to see it, no new connections, spares, workers drain, authority, lock. Rules:

1. What a child needs to be replaced without loss (listening sockets, lock, lifeline) is opened here, once.
2. A start that fails leaves nothing running and says why in one sentence; a child that dies later, or hangs, is
   replaced, unless the data directory is no longer ours: then nothing can be served any more, which is said once, and
   everything ends.
3. Nothing here reads the store or a request: there is nothing to go wrong that could take the others down.
4. A reload (``reload``) ends in one of two ways: every process runs on the new configuration, or every one on the old.
5. A signal counts from the first line of ``run`` to its end. A stop takes the same way at any moment, in the middle of
   a start or of a reload too: it is logged at once, and what has begun to serve drains.
"""

import asyncio
import os
import secrets
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from proxy.core.errors import DataDirLost, PatgateError
from proxy.core.ipc.child_protocol import DATA_DIR_LOST
from proxy.gateway.process.build import is_compiled
from proxy.observe import defects
from proxy.observe.logs import Logger, get_logger
from proxy.settings.model import Settings
from proxy.supervisor import activation, datadir
from proxy.supervisor.children import Fleet
from proxy.supervisor.config_generation import CONTROL, Generation, Ground
from proxy.supervisor.datadir import DataDirLock
from proxy.supervisor.listeners import ListeningSockets
from proxy.supervisor.processes import LOOK_SECONDS, STDERR_FD, lifeline
from proxy.supervisor.reload import binds, close_others, listeners_for
from proxy.supervisor.reload_queue import Load, Reloads
from proxy.supervisor.sd_notify import Notifier

DRAIN_MARGIN_SECONDS: Final = 5.0
"""How much longer than ``timeouts.drain`` a worker may take before it is killed."""
AUTHORITY_SECONDS: Final = 5.0
"""How long the authority may take to put the store away; it loses nothing when killed."""

HEARD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The signals that mean something to a gateway."""

Serving = Callable[[Mapping[str, str]], Coroutine[Any, Any, None]]


class Supervisor:
    """Runs one gateway: ``run`` returns the exit status after ``stop``, or raises the error that kept it from starting.

    ``load`` gives the configuration anew for a reload; without one SIGHUP changes nothing.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        accept_older_store: bool = False,
        stderr_fd: int = STDERR_FD,
        purpose: str = "serve",
        load: Load | None = None,
    ) -> None:
        self._settings = settings
        self._accept_older_store = accept_older_store
        self._stderr_fd = stderr_fd
        self._purpose = purpose
        self._load = load
        self._log: Logger = get_logger("supervisor")
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._hung_up = asyncio.Event()
        self._notifier = Notifier.from_environment(os.environ, os.getpid())
        self._listeners: dict[str, ListeningSockets] = {}
        self._lock: DataDirLock | None = None
        self._failure: PatgateError | None = None

    def stop(self) -> None:
        """Begin to drain; asked a second time, end at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self, serving: Serving | None = None) -> int:
        """Serve until told to stop. ``serving`` gets the real addresses once requests are answered.

        Raises ``PatgateError`` (data directory busy, port taken, the authority's own reason) with nothing left running.
        """
        loop = asyncio.get_running_loop()
        defects.install(loop)
        settings = self._settings
        async with AsyncExitStack() as stack:
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(signum, self.stop)
                stack.callback(loop.remove_signal_handler, signum)
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup, os.isatty(0))
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
            # Blocked signals are inherited, and whoever started this process may have blocked some.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
            datadir.prepare(settings.data_dir)
            held = stack.enter_context(await datadir.lock(settings.data_dir, self._purpose))
            datadir.forget_addresses(settings.data_dir)
            self._lock = held
            stack.callback(self._forget_addresses)
            stack.callback(lambda: close_others(self._listeners, {}))
            self._listeners = activation.adopt(activation.passed(os.environ, os.getpid()), binds(settings))
            self._listeners = listeners_for(settings, self._listeners)
            lifeline_in, lifeline_out = lifeline()
            stack.callback(os.close, lifeline_in)
            stack.callback(os.close, lifeline_out)
            ground = Ground(
                lock_fd=held.fd,
                lifeline_fd=lifeline_in,
                # Another one at each start, so that two gateways which stand in front of each other are no loop.
                pseudonym=f"patgate-{secrets.token_hex(4)}",
                accept_older_store=self._accept_older_store,
            )
            fleet = Fleet(
                Generation(settings, self._listeners, ground),
                self._log,
                self._stderr_fd,
                hopeless=self._lost_directory,
            )
            stack.push_async_callback(fleet.end)  # whatever is raised from here on
            await self._serve(fleet, ground, serving)
        if self._failure is not None:
            raise self._failure
        return 0

    def reload(self) -> None:
        """Read the configuration again and run on it, as soon as everything is started."""
        self._hung_up.set()

    def _on_hangup(self, had_terminal: bool) -> None:
        """SIGHUP: the terminal is gone, and this with it, or somebody wants the configuration reloaded."""
        if had_terminal and not os.isatty(0):
            self.stop()
        elif self._stop.is_set():
            self._log.warning("SIGHUP reloads nothing any more: patgate is about to end")
        elif self._load is None:
            self._log.warning("SIGHUP reloads nothing here: there is no configuration file to read again")
        else:
            self.reload()

    def _lost_directory(self, status: int) -> bool:
        """Whether the authority ended because there is no data directory of ours any more; then everything ends."""
        if status != DATA_DIR_LOST and self._directory_is_ours():
            return False
        self._failure = DataDirLost(
            f"The data directory {self._settings.data_dir} was removed or replaced, "
            "or can no longer be opened; patgate has ended, because it can no longer know which tokens are valid."
        )
        self._stop.set()
        return True

    def _directory_is_ours(self) -> bool:
        return self._lock is not None and self._lock.is_of(self._settings.data_dir)

    def _forget_addresses(self) -> None:
        if self._directory_is_ours():
            datadir.forget_addresses(self._settings.data_dir)

    async def _serve(self, fleet: Fleet, ground: Ground, serving: Serving | None) -> None:
        if not await self._started(fleet):
            await self._end(fleet)
            return
        if self._lost_directory(0):  # while everything was being started
            return
        addresses = self._publish(fleet.generation)
        self._log.info("serving", workers=len(fleet.workers), compiled=is_compiled(), **addresses)
        self._notifier.ready(f"serving on {addresses['proxy']}")
        async with asyncio.TaskGroup() as group:
            fleet.keep(group)
            others = [group.create_task(self._look(fleet), name="look for children that hang")]
            if self._notifier.watchdog_seconds is not None:
                others.append(group.create_task(self._feed(self._notifier.watchdog_seconds), name="watchdog"))
            if serving is not None:
                others.append(group.create_task(self._tell(serving, addresses), name="serving"))
            reloading = None
            if self._load is not None:
                reloads = Reloads(fleet, ground, self._load, self._notifier, self._log, published=self._publish)
                reloading = group.create_task(reloads.take(self._hung_up, self._stop), name="reloads")
            await self._stop.wait()
            await self._end(fleet, reloading)
            for task in others:
                task.cancel()

    def _publish(self, generation: Generation) -> dict[str, str]:
        """Write down the addresses where the gateway is."""
        self._settings, self._listeners = generation.settings, generation.listeners
        addresses = generation.addresses
        datadir.write_addresses(self._settings.data_dir, addresses)
        return addresses

    async def _tell(self, serving: Serving, addresses: Mapping[str, str]) -> None:
        try:
            await serving(addresses)
        except PatgateError as error:
            self._failure = error
            self.stop()

    async def _look(self, fleet: Fleet) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            fleet.look()

    async def _feed(self, seconds: float) -> None:
        while True:
            self._notifier.alive()
            await asyncio.sleep(seconds)

    async def _started(self, fleet: Fleet) -> bool:
        """Start all in order; ``False`` when told to stop meanwhile."""
        if self._stop.is_set():
            return False
        start = asyncio.create_task(fleet.start(), name="start")
        stop = asyncio.create_task(self._stop.wait(), name="told to stop")
        try:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
            return fleet.started
        finally:
            start.cancel()
            stop.cancel()
            await asyncio.gather(start, stop, return_exceptions=True)

    async def _end(self, fleet: Fleet, reloading: asyncio.Task[None] | None = None) -> None:
        """Drain and end everything; from now on a second signal ends it at once, whatever is waited for."""
        timeouts = fleet.generation.settings.timeouts
        drain_seconds = timeouts.drain + DRAIN_MARGIN_SECONDS
        grace = timeouts.grace if self._failure is None and fleet.started else 0.0
        self._log.info("stopping", within_seconds=drain_seconds + grace)
        self._notifier.stopping()
        fleet.show(draining=True)
        self._forget_addresses()
        async with asyncio.TaskGroup() as group:
            hurry = group.create_task(self._hurry.wait(), name="told to hurry")
            hurry.add_done_callback(lambda task: None if task.cancelled() else fleet.kill())
            if reloading is not None:
                await fleet.give_up_starting()
                await reloading  # one that goes on comes to an end, so that no worker is left on hold
            await fleet.end_spares()
            if grace:
                fleet.leave()
                await asyncio.wait((hurry,), timeout=grace)
            for name, listener in self._listeners.items():
                if name != CONTROL:
                    listener.close()
            await fleet.stop_workers(drain_seconds)
            await fleet.authority.stop(AUTHORITY_SECONDS)
            hurry.cancel()
        self._log.info("stopped")
