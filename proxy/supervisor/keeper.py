"""Keeps children running: replaces one that died or hangs, at once or after a growing delay, never during a reload.

A dead child is replaced by a spare (``proxy.supervisor.standby``) where one stands by, else by a new process. A child
that sends no heartbeat hangs and is killed, which replaces it too. ``Gate`` keeps replacements and reloads apart.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from proxy.observe.logs import Logger
from proxy.supervisor.child import HUNG_LOOKS, STDERR_FD, Child, ChildSpec, StartRefusal
from proxy.supervisor.errors import ReloadRefused, StartupRefused
from proxy.supervisor.standby import Spares

QUICK_DEATH_SECONDS: Final = 1.0
"""A child that ends sooner than this after it became ready counts as a quick death."""
FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 1.0
"""How often the supervisor checks for children that hang."""


def delay_before(quick_deaths: int) -> float:
    """Seconds to wait before a start: none after a single death, then doubling with each further quick death."""
    if quick_deaths <= 1:
        return 0.0
    return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(quick_deaths - 2, 16))


class Gate:
    """Lock between replacements, of which any number run at a time, and one reload.

    It keeps a child from starting with one configuration while the others change to the next.
    """

    def __init__(self) -> None:
        self._replacing = 0
        self._reloading = False
        self._closed = False
        self._changed = asyncio.Condition()

    async def close(self) -> None:
        """Refuse every reload from now on, also those that are waiting."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    @asynccontextmanager
    async def replacing(self) -> AsyncIterator[None]:
        """Hold the lock for one replacement."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._reloading)
            self._replacing += 1
        try:
            yield
        finally:
            async with self._changed:
                self._replacing -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Hold the lock for a reload. Raises ``ReloadRefused`` once the gate is closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or not (self._reloading or self._replacing))
            if self._closed:
                raise ReloadRefused("The configuration was not reloaded: patgate is about to end.")
            self._reloading = True
        try:
            yield
        finally:
            async with self._changed:
                self._reloading = False
                self._changed.notify_all()


class Keeper:
    """Keeps one child running: ``start`` once, then ``keep`` until ``stop``.

    A child that died is replaced by one of the ``spares`` if one stands by, else by a new process, as ``spec``
    describes at that time. ``hopeless`` gets the exit status of each child that died and returns whether a replacement
    is pointless; then there is none. ``on_ready`` is called with each child that becomes ready.
    """

    def __init__(
        self,
        spec: ChildSpec,
        log: Logger,
        stderr_fd: int = STDERR_FD,
        *,
        spares: Spares | None = None,
        hopeless: Callable[[int], bool] | None = None,
        gate: Gate | None = None,
        on_ready: Callable[[Child], None] | None = None,
    ) -> None:
        self.spec = spec
        self._log = log.bind(child=spec.name)
        self._stderr_fd = stderr_fd
        self._spares = spares
        self._hopeless = hopeless
        self._gate = gate or Gate()
        self._on_ready = on_ready
        self._is_ready = False
        self._child: Child | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The current child's process id."""
        return self._child.pid if self._child is not None else None

    @property
    def serving(self) -> Child | None:
        """The current child, if it has become ready."""
        return self._child if self._is_ready else None

    def kill_if_hung(self) -> None:
        """Kill the child if it hangs; called every ``LOOK_SECONDS``."""
        child = self.serving
        if child is not None and not self._stopping.is_set() and child.hangs():
            self._log.error("child hangs and is ended", child_pid=child.pid, silent_looks=HUNG_LOOKS)
            self._is_ready = False
            child.send(signal.SIGKILL)

    async def start(self) -> None:
        """Start the first child. Raises ``StartupRefused`` with the child's own sentence."""
        try:
            self._child = await Child.spawn(self.spec, self._stderr_fd)
        except OSError as error:
            raise StartupRefused(f"The {self.spec.name} process cannot be started: {error.strerror}.") from error
        refusal = await self._readiness(self._child)
        if refusal is not None:
            status = await self._child.ended()
            self._child = None
            silent = f"The {self.spec.name} process ended before it was ready ({_how(status)}); the log may say why."
            raise StartupRefused(refusal.sentence or silent)
        self._became_ready(self._child)

    async def keep(self) -> None:
        """Replace the child each time it ends: at once or, after several quick deaths, after a growing delay."""
        loop = asyncio.get_running_loop()
        quick_deaths = 0
        ready_at = loop.time()
        while not self._stopping.is_set():
            if self._child is not None:
                pid, status = self._child.pid, await self._child.ended()
                self._is_ready = False
                if self._stopping.is_set() or (self._hopeless is not None and self._hopeless(status)):
                    return
                young = loop.time() - ready_at < QUICK_DEATH_SECONDS
                quick_deaths = quick_deaths + 1 if young else 1
                self._log.error("child ended", child_pid=pid, how=_how(status), restart_in=delay_before(quick_deaths))
            if await self._stops_within(delay_before(quick_deaths)):
                return
            async with self._gate.replacing():
                replaced = await self._replace()
            if replaced:
                ready_at = loop.time()
            elif self._child is None:
                quick_deaths += 1
        if self._child is not None:
            await self._child.ended()

    async def _replace(self) -> bool:
        if self._stopping.is_set():
            return False
        self._child = self._spares.take(self.spec) if self._spares is not None else None
        if self._child is None:
            try:
                self._child = await Child.spawn(self.spec, self._stderr_fd, later=True)
            except OSError as error:
                self._log.error("child cannot be started", error=error)
                return False
        child = self._child
        refusal = await self._readiness(child)
        if self._spares is not None:
            self._spares.refill()  # not earlier: the serving child has the processor first
        if refusal is None:
            self._log.info("child restarted", child_pid=child.pid)
            self._became_ready(child)
            return True
        self._log.error("child did not start", child_pid=child.pid, problem=refusal.sentence)
        return False

    async def _readiness(self, child: Child) -> StartRefusal | None:
        """Wait as ``Child.ready``, for a child that was just started and that ``kill`` could therefore miss."""
        if self._stopping.is_set():
            child.send(signal.SIGKILL)
        return await child.ready()

    def _became_ready(self, child: Child) -> None:
        self._is_ready = True
        if self._on_ready is not None:
            self._on_ready(child)

    async def _stops_within(self, seconds: float) -> bool:
        if seconds <= 0:
            return self._stopping.is_set()
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self, deadline_seconds: float) -> None:
        """Stop replacing, send SIGTERM and, after the deadline, SIGKILL. A second call can shorten the deadline."""
        self._stopping.set()
        if self._child is not None:
            await self._child.stop(deadline_seconds)

    def kill(self) -> None:
        """Kill the child without replacing it."""
        self._stopping.set()
        if self._child is not None:
            self._child.send(signal.SIGKILL)

    async def end(self) -> None:
        """Kill the child without replacing it, and wait until it has ended."""
        self.kill()
        if self._child is not None:
            await self._child.ended()


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
