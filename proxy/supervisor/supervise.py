"""Supervisor of one gateway: locks the data directory, starts the children, handles signals and stops everything.

Start order: lock, sockets, authority, workers, addresses, spares. Stop order: readiness off, ``timeouts.grace`` for
load balancers to notice, spares, no new connections, workers drain, authority, lock. Rules:

1. What outlives a child (listening sockets, lock, lifeline) is opened here, once, so that a replacement loses nothing.
2. A start that fails leaves nothing running and reports one sentence. A child that dies later or hangs is replaced,
   unless the data directory is no longer ours: then nothing can be served, which is reported once, and everything ends.
3. Nothing here reads the store or a request, so no defect in that code can end the supervisor.
4. After a reload (``reload``) either every process runs the new configuration or every one runs the former.
5. Signals are handled from the first line of ``run`` to its end. A stop works the same at any moment, also during a
   start or a reload: it is logged at once, and children that serve drain.
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
from proxy.supervisor.child import STDERR_FD, lifeline
from proxy.supervisor.children import Children
from proxy.supervisor.config_generation import CONTROL, Generation, StartContext
from proxy.supervisor.datadir import DataDirLock
from proxy.supervisor.keeper import LOOK_SECONDS
from proxy.supervisor.listeners import ListeningSockets
from proxy.supervisor.reload import binds, close_others, listeners_for
from proxy.supervisor.reload_queue import Load, ReloadQueue
from proxy.supervisor.sd_notify import Notifier

DRAIN_MARGIN_SECONDS: Final = 5.0
"""How much longer than ``timeouts.drain`` a worker may take before it is killed."""
AUTHORITY_SECONDS: Final = 5.0
"""How long the authority may take to close the store; it loses nothing when killed."""

HANDLED_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Serving = Callable[[Mapping[str, str]], Coroutine[Any, Any, None]]


class Supervisor:
    """Runs one gateway: ``run`` returns the exit status after ``stop``, or raises the error that prevented the start.

    ``load`` reads the configuration again for a reload; without it SIGHUP changes nothing.
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
        self._reload_requested = asyncio.Event()
        self._notifier = Notifier.from_environment(os.environ, os.getpid())
        self._listeners: dict[str, ListeningSockets] = {}
        self._lock: DataDirLock | None = None
        self._failure: PatgateError | None = None

    def stop(self) -> None:
        """Begin to drain; a second call ends everything at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self, serving: Serving | None = None) -> int:
        """Serve until ``stop``. ``serving`` is called with the real addresses once requests are answered.

        Raises ``PatgateError`` (data directory busy, port taken, the authority's own reason); nothing is left running.
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
            # The process that started this one may have blocked some, and blocked signals are inherited.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
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
            context = StartContext(
                lock_fd=held.fd,
                lifeline_fd=lifeline_in,
                # Random at each start, so that a request that passes two gateways is not taken for a loop.
                pseudonym=f"patgate-{secrets.token_hex(4)}",
                accept_older_store=self._accept_older_store,
            )
            children = Children(
                Generation(settings, self._listeners, context),
                self._log,
                self._stderr_fd,
                hopeless=self._data_dir_lost,
            )
            stack.push_async_callback(children.end)
            await self._serve(children, context, serving)
        if self._failure is not None:
            raise self._failure
        return 0

    def reload(self) -> None:
        """Request a reload, which runs once everything is started."""
        self._reload_requested.set()

    def _on_hangup(self, had_terminal: bool) -> None:
        """Handle SIGHUP: stop when the terminal was closed, else reload the configuration."""
        if had_terminal and not os.isatty(0):
            self.stop()
        elif self._stop.is_set():
            self._log.warning("SIGHUP reloads nothing any more: patgate is about to end")
        elif self._load is None:
            self._log.warning("SIGHUP reloads nothing here: there is no configuration file to read again")
        else:
            self.reload()

    def _data_dir_lost(self, status: int) -> bool:
        """Whether the data directory is no longer ours, also by the authority's exit status; if so, stop everything."""
        if status != DATA_DIR_LOST and self._owns_data_dir():
            return False
        self._failure = DataDirLost(
            f"The data directory {self._settings.data_dir} was removed or replaced, "
            "or can no longer be opened; patgate has ended, because it can no longer know which tokens are valid."
        )
        self._stop.set()
        return True

    def _owns_data_dir(self) -> bool:
        return self._lock is not None and self._lock.is_of(self._settings.data_dir)

    def _forget_addresses(self) -> None:
        if self._owns_data_dir():
            datadir.forget_addresses(self._settings.data_dir)

    async def _serve(self, children: Children, context: StartContext, serving: Serving | None) -> None:
        if not await self._started(children):
            await self._end(children)
            return
        if self._data_dir_lost(0):  # during the start
            return
        addresses = self._publish(children.generation)
        self._log.info("serving", workers=len(children.workers), compiled=is_compiled(), **addresses)
        self._notifier.ready(f"serving on {addresses['proxy']}")
        async with asyncio.TaskGroup() as group:
            children.keep(group)
            others = [group.create_task(self._kill_hung(children), name="kill children that hang")]
            if self._notifier.watchdog_seconds is not None:
                others.append(group.create_task(self._feed_watchdog(self._notifier.watchdog_seconds), name="watchdog"))
            if serving is not None:
                others.append(group.create_task(self._call(serving, addresses), name="serving"))
            reloading = None
            if self._load is not None:
                reloads = ReloadQueue(children, context, self._load, self._notifier, self._log, published=self._publish)
                reloading = group.create_task(reloads.run(self._reload_requested, self._stop), name="reloads")
            await self._stop.wait()
            await self._end(children, reloading)
            for task in others:
                task.cancel()

    def _publish(self, generation: Generation) -> dict[str, str]:
        """Write the addresses of the listeners to the data directory, and return them."""
        self._settings, self._listeners = generation.settings, generation.listeners
        addresses = generation.addresses
        datadir.write_addresses(self._settings.data_dir, addresses)
        return addresses

    async def _call(self, serving: Serving, addresses: Mapping[str, str]) -> None:
        try:
            await serving(addresses)
        except PatgateError as error:
            self._failure = error
            self.stop()

    async def _kill_hung(self, children: Children) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            children.kill_hung()

    async def _feed_watchdog(self, seconds: float) -> None:
        while True:
            self._notifier.alive()
            await asyncio.sleep(seconds)

    async def _started(self, children: Children) -> bool:
        """Start all children in order; ``False`` when a stop comes first."""
        if self._stop.is_set():
            return False
        start = asyncio.create_task(children.start(), name="start")
        stop = asyncio.create_task(self._stop.wait(), name="stop requested")
        try:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
            return children.started
        finally:
            start.cancel()
            stop.cancel()
            await asyncio.gather(start, stop, return_exceptions=True)

    async def _end(self, children: Children, reloading: asyncio.Task[None] | None = None) -> None:
        """Drain and end everything; a second signal kills all children at once."""
        timeouts = children.generation.settings.timeouts
        drain_seconds = timeouts.drain + DRAIN_MARGIN_SECONDS
        grace = timeouts.grace if self._failure is None and children.started else 0.0
        self._log.info("stopping", within_seconds=drain_seconds + grace)
        self._notifier.stopping()
        children.report_state(draining=True)
        self._forget_addresses()
        async with asyncio.TaskGroup() as group:
            hurry = group.create_task(self._hurry.wait(), name="second stop requested")
            hurry.add_done_callback(lambda task: None if task.cancelled() else children.kill())
            if reloading is not None:
                await children.abort_starts()
                await reloading  # a running reload completes, so that no worker stays on hold
            await children.end_spares()
            if grace:
                children.leave()
                await asyncio.wait((hurry,), timeout=grace)
            for name, listener in self._listeners.items():
                if name != CONTROL:
                    listener.close()
            await children.stop_workers(drain_seconds)
            await children.authority.stop(AUTHORITY_SECONDS)
            hurry.cancel()
        self._log.info("stopped")
