"""One gateway, from the lock to the last exit.

Order of a start: lock, sockets, authority, workers, addresses, spares. Order of a stop: no new connections, spares,
workers drain, authority, lock. Rules:

1. What a child needs to be replaced without loss (listening sockets, lock, lifeline) is opened here, once.
2. The configuration reaches a child through an anonymous file, never through its command line or environment.
3. A start that fails leaves nothing running and says why in one sentence; a child that dies later is replaced, unless
   the data directory is no longer ours: then nothing can be served any more, which is said once, and everything ends.
4. Nothing here reads the store or a request: there is nothing to go wrong that could take the others down.
"""

import asyncio
import os
import secrets
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from proxy.core.child import DATA_DIR_LOST, SPARE_SUFFIX
from proxy.core.errors import DataDirLost, PatgateError
from proxy.gateway.build import is_compiled
from proxy.observe.logs import Logger, get_logger
from proxy.settings.model import Settings
from proxy.supervisor import datadir, listeners
from proxy.supervisor.datadir import DataDirLock
from proxy.supervisor.listeners import Listener
from proxy.supervisor.processes import STDERR_FD, ChildSpec, Keeper, command, in_memory, lifeline
from proxy.supervisor.spares import Spares

DRAIN_MARGIN_SECONDS: Final = 5.0
"""How much longer than `timeouts.drain` a worker may take before it is killed."""
AUTHORITY_SECONDS: Final = 5.0
"""How long the authority may take to put the store away; it loses nothing when killed."""

Serving = Callable[[Mapping[str, str]], Coroutine[Any, Any, None]]


class Supervisor:
    """Runs one gateway: `run` returns the exit status after `stop`, or raises the error that kept it from starting."""

    def __init__(
        self,
        settings: Settings,
        *,
        accept_older_store: bool = False,
        stderr_fd: int = STDERR_FD,
        purpose: str = "serve",
    ) -> None:
        self._settings = settings
        self._accept_older_store = accept_older_store
        self._stderr_fd = stderr_fd
        self._purpose = purpose
        self._log: Logger = get_logger("supervisor")
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._listeners: dict[str, Listener] = {}
        self._authority: Keeper | None = None
        self._workers: list[Keeper] = []
        self._spares: list[Spares] = []
        self._lock: DataDirLock | None = None
        self._failure: PatgateError | None = None

    def stop(self) -> None:
        """Begin to drain; asked a second time, end at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self, serving: Serving | None = None) -> int:
        """Serve until told to stop. `serving` gets the real addresses once requests are answered.

        Raises `PatgateError` (data directory busy, port taken, the authority's own reason) with nothing left running.
        """
        loop = asyncio.get_running_loop()
        settings = self._settings
        async with AsyncExitStack() as stack:
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(signum, self.stop)
                stack.callback(loop.remove_signal_handler, signum)
            loop.add_signal_handler(signal.SIGHUP, self._hung_up, os.isatty(0))
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
            datadir.prepare(settings.data_dir)
            held = stack.enter_context(await datadir.lock(settings.data_dir, self._purpose))
            datadir.forget_addresses(settings.data_dir)
            self._lock = held
            stack.callback(self._forget_addresses)
            self._listen(stack)
            boot_fd = _closing(stack, in_memory(settings.to_boot_json().encode()))
            worker_boot_fd = _closing(stack, in_memory(settings.to_worker_json().encode()))
            lifeline_in, lifeline_out = lifeline()
            _closing(stack, lifeline_in)
            _closing(stack, lifeline_out)
            self._authority, self._workers = self._keepers(boot_fd, worker_boot_fd, lifeline_in, held.fd)
            stack.push_async_callback(self._end_all)  # whatever is raised from here on
            await self._serve(self._authority, serving)
        if self._failure is not None:
            raise self._failure
        return 0

    def _hung_up(self, had_terminal: bool) -> None:
        """SIGHUP: the terminal has closed, or somebody expects a reload, which must not end the service."""
        if had_terminal:
            self.stop()
        else:
            self._log.warning("SIGHUP reloads nothing yet: restart to apply a changed configuration")

    def _listen(self, stack: AsyncExitStack) -> None:
        wanted = [("control", self._settings.listen.control.bind, 1, False)]
        workers = self._settings.workers
        wanted.append(("proxy", self._settings.listen.proxy.bind, workers, True))
        if self._settings.listen.forward_auth is not None:
            wanted.append(("forward_auth", self._settings.listen.forward_auth.bind, workers, True))
        for name, bind, slots, shared in wanted:
            listener = listeners.listen(name, bind.host, bind.port, slots, shared)
            self._listeners[name] = listener
            stack.callback(listener.close)

    def _keepers(
        self, boot_fd: int, worker_boot_fd: int, lifeline_fd: int, lock_fd: int
    ) -> tuple[Keeper, list[Keeper]]:
        boot = ("--boot-fd", str(boot_fd))
        # Another one at each start, so that two gateways which stand in front of each other on purpose are no loop.
        worker_boot = ("--boot-fd", str(worker_boot_fd), "--pseudonym", f"patgate-{secrets.token_hex(4)}")
        control_fd = self._listeners["control"].fd()
        authority = ChildSpec(
            name="authority",
            command=command("authority", *boot, "--control-fd", str(control_fd)),
            fds=(boot_fd, control_fd, lock_fd),
            lifeline_fd=lifeline_fd,
            # What the operator acknowledges is the store as it is now, not whatever a later start may find.
            first=("--accept-older-store",) if self._accept_older_store else (),
            later=("--successor",),
        )
        workers = []
        for slot in range(self._settings.workers):
            sockets = {n: listener.fd(slot) for n, listener in self._listeners.items() if n != "control"}
            arguments = ["--slot", str(slot), *worker_boot]
            for name, fd in sockets.items():
                arguments += [f"--{name.replace('_', '-')}-fd", str(fd)]
            workers.append(
                ChildSpec(
                    name=f"gateway-{slot}",
                    command=command("gateway", *arguments),
                    fds=(worker_boot_fd, lock_fd, *sockets.values()),
                    lifeline_fd=lifeline_fd,
                )
            )
        held = sorted({fd for spec in workers for fd in spec.fds} - {worker_boot_fd, lock_fd})
        spare_authority = self._spare(authority, "authority", *boot)
        spare_worker = self._spare(workers[0], "gateway", *worker_boot, "--held-fds", *map(str, held), fds=held)
        return (
            Keeper(
                authority,
                self._log,
                self._stderr_fd,
                spares=spare_authority,
                hopeless=self._lost_directory,
            ),
            [Keeper(worker, self._log, self._stderr_fd, spares=spare_worker) for worker in workers],
        )

    def _spare(self, spec: ChildSpec, role: str, *arguments: str, fds: Sequence[int] = ()) -> Spares:
        """One spare for every slot of a role."""
        spare = ChildSpec(
            name=role + SPARE_SUFFIX,
            command=command(role + SPARE_SUFFIX, *arguments),
            fds=tuple({*spec.fds, *fds}),
            lifeline_fd=spec.lifeline_fd,
        )
        self._spares.append(Spares(spare, self._log, self._stderr_fd))
        return self._spares[-1]

    def _lost_directory(self, status: int) -> bool:
        """Whether the authority ended because there is no data directory of ours any more; then everything ends."""
        if status != DATA_DIR_LOST and self._directory_is_ours():
            return False
        self._failure = DataDirLost(
            f"The data directory {self._settings.data_dir} was removed or replaced while it was in use; "
            "patgate has ended, because nobody can say any more which tokens are valid."
        )
        self.stop()
        return True

    def _directory_is_ours(self) -> bool:
        return self._lock is not None and self._lock.is_of(self._settings.data_dir)

    def _forget_addresses(self) -> None:
        if self._directory_is_ours():
            datadir.forget_addresses(self._settings.data_dir)

    async def _serve(self, authority: Keeper, serving: Serving | None) -> None:
        if not await self._started(authority):
            return
        if self._lost_directory(0):  # while everything was being started
            return
        addresses = {name: self._listeners[name].address for name in sorted(self._listeners)}
        datadir.write_addresses(self._settings.data_dir, addresses)
        self._log.info("serving", workers=len(self._workers), compiled=is_compiled(), **addresses)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(authority.keep(), name="keep authority")]
            tasks += [group.create_task(w.keep(), name=f"keep gateway-{n}") for n, w in enumerate(self._workers)]
            spares = [group.create_task(s.keep(), name="keep spare") for s in self._spares]
            told = None
            if serving is not None:
                told = group.create_task(self._tell(serving, addresses), name="serving")
            await self._stop.wait()
            if told is not None:
                told.cancel()
            for task in spares:
                task.cancel()
            await asyncio.gather(*spares, return_exceptions=True)
            await asyncio.gather(*(spare.end() for spare in self._spares))
            await self._drain(authority)

    async def _tell(self, serving: Serving, addresses: Mapping[str, str]) -> None:
        try:
            await serving(addresses)
        except PatgateError as error:
            self._failure = error
            self.stop()

    async def _started(self, authority: Keeper) -> bool:
        """Start all in order; `False` when told to stop meanwhile."""
        start = asyncio.create_task(self._start(authority), name="start")
        stop = asyncio.create_task(self._stop.wait(), name="told to stop")
        try:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
            return start.done()
        finally:
            start.cancel()
            stop.cancel()
            await asyncio.gather(start, stop, return_exceptions=True)

    async def _start(self, authority: Keeper) -> None:
        await authority.start()
        results = await asyncio.gather(*(worker.start() for worker in self._workers), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _drain(self, authority: Keeper) -> None:
        drain_seconds = self._settings.timeouts.drain + DRAIN_MARGIN_SECONDS
        self._log.info("stopping", within_seconds=drain_seconds)
        self._forget_addresses()
        for name, listener in self._listeners.items():
            if name != "control":
                listener.close()
        async with asyncio.TaskGroup() as group:
            hurry = group.create_task(self._hurry.wait(), name="told to hurry")
            hurry.add_done_callback(lambda task: None if task.cancelled() else self._kill_all())
            await asyncio.gather(*(worker.stop(drain_seconds) for worker in self._workers))
            await authority.stop(AUTHORITY_SECONDS)
            hurry.cancel()
        self._log.info("stopped")

    def _kill_all(self) -> None:
        for keeper in self._all():
            keeper.kill()

    async def _end_all(self) -> None:
        self._kill_all()
        await asyncio.gather(*(keeper.end() for keeper in self._all()), *(spare.end() for spare in self._spares))

    def _all(self) -> list[Keeper]:
        return self._workers + ([self._authority] if self._authority is not None else [])


def _closing(stack: AsyncExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd
