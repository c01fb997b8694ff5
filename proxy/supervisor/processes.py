"""One child process and the keeper that replaces it when it dies.

A child is ``python -P -m proxy.app ROLE …`` with descriptors, never secrets, on its command line. It says ``ready`` or
``error: SENTENCE`` once, over its ready pipe, and ends by itself when the lifeline's other end closes, which the kernel
does even for a supervisor that was killed. Exits are awaited, not polled for. Once it is ready a child takes orders and
says that it still turns (``proxy.supervisor_channel``); one that says so no more hangs, and is ended and replaced.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from proxy import startup, supervisor_channel
from proxy.core.ipc.child_protocol import ERROR, READY, SPARE
from proxy.observe.logs import Logger
from proxy.supervisor import sd_notify
from proxy.supervisor.errors import ReloadRefused, StartupRefused
from proxy.supervisor_channel import SupervisorChannel

if TYPE_CHECKING:
    from proxy.supervisor.standby import Spares

STDERR_FD: Final = 2

ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType({"PYDANTIC_DISABLE_PLUGINS": "__all__"})
"""Looking for pydantic's plugins takes 20 ms of each start, and patgate has none."""

QUICK_DEATH_SECONDS: Final = 1.0
"""A child that lived shorter than this after it was ready counts as a quick death."""
FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 1.0
"""How often the supervisor looks for children that hang."""
HUNG_LOOKS: Final = 10
"""Looks in a row without a heartbeat after which a child hangs. Looks are counted and not time, so that a machine that
slept, or a process group that was stopped, is none of it: the supervisor did not look either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildSpec:
    """How to start one child. ``command`` and ``fds`` are the same at each start; two pipes are added by
    ``Child.spawn``.
    """

    name: str
    command: tuple[str, ...]
    fds: tuple[int, ...]
    lifeline_fd: int
    first: tuple[str, ...] = ()
    """Arguments of the first start only."""
    later: tuple[str, ...] = ()
    """Arguments of every start but the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartRefusal:
    """A child that is not ready: in its own words, or ``None`` when it ended without any."""

    sentence: str | None


PROGRAM: Final = startup.program("proxy.app")
"""A child of this package, with the interpreter that runs now."""


def command(role: str, *arguments: str) -> tuple[str, ...]:
    """The command line of a child of this package."""
    return (*PROGRAM, role, *arguments)


def delay_before(quick_deaths: int) -> float:
    """Seconds to wait before a start: none after a single death, then doubling while a child keeps dying young."""
    if quick_deaths <= 1:
        return 0.0
    return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(quick_deaths - 2, 16))


def _environment() -> dict[str, str]:
    """What a child inherits: nothing of ours, since that may be a secret and all that it needs comes over its pipes."""
    kept = {name: value for name, value in os.environ.items() if not sd_notify.is_private(name)}
    return {**startup.environment(kept), **ENVIRONMENT}


class Child:
    """One running process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        ready: asyncio.StreamReader,
        transport: asyncio.ReadTransport,
        pipes: tuple[str, ...],
        line: SupervisorChannel,
    ) -> None:
        self.line = line
        self._process = process
        self._ready = ready
        self._transport = transport
        self._pipes = pipes
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            self._pidfd = -1  # it has ended already
        self._beats = 0
        self._silent = 0
        self.pid = process.pid

    @classmethod
    async def spawn(cls, spec: ChildSpec, stderr_fd: int = STDERR_FD, *, later: bool = False) -> "Child":
        """Start it, for the first time or ``later``. Raises ``OSError`` when the system cannot."""
        ready_in, ready_out = os.pipe()
        ours, theirs = supervisor_channel.pair()
        said = os.fdopen(ready_in, "rb", buffering=0)
        reader = asyncio.StreamReader()
        with ExitStack() as passed, ExitStack() as kept:
            passed.callback(os.close, ready_out)
            passed.callback(theirs.close)
            kept.callback(ours.close)
            kept.callback(said.close)
            # Nothing is awaited once the process is there, so that a start that is given up leaves none behind.
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), said
            )
            kept.callback(transport.close)
            pipes = (
                *("--lifeline-fd", str(spec.lifeline_fd)),
                *("--ready-fd", str(ready_out)),
                *("--channel-fd", str(theirs.fileno())),
            )
            # Cancelled, it ends the process itself.
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                *(spec.later if later else spec.first),
                *pipes,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stderr_fd,  # standard output belongs to the command's answer
                stderr=stderr_fd,
                pass_fds=(*spec.fds, spec.lifeline_fd, ready_out, theirs.fileno()),
                env=_environment(),
            )
            kept.pop_all()
        line = SupervisorChannel(ours)
        line.open()
        return cls(process, reader, transport, pipes, line)

    async def stands_by(self) -> bool:
        """Wait for a spare's first line: whether it has loaded everything."""
        return await self._ready.readline() == SPARE

    def order(self, spec: ChildSpec, orders_fd: int) -> None:
        """Have this spare go on as the child that ``spec`` describes. Raises ``OSError`` when it is gone."""
        arguments = (*spec.command[len(PROGRAM) :], *spec.later, *self._pipes)
        os.write(orders_fd, json.dumps(arguments).encode() + b"\n")

    async def ready(self) -> StartRefusal | None:
        """Wait for its one line: ``None`` when it is ready, else why it is not."""
        try:
            line = await self._ready.readline()
        finally:
            self._transport.close()
        if line == READY:
            return None
        if line.startswith(ERROR):
            return StartRefusal(sentence=line[len(ERROR) :].decode("utf-8", "replace").strip())
        return StartRefusal(sentence=None)

    def let_go(self) -> None:
        """Stop listening to a child that nobody waits for any more."""
        self._transport.close()

    async def ended(self) -> int:
        """Wait for its end: the exit status, or minus the number of the signal that killed it."""
        status = await self._process.wait()
        self.line.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return status

    def hangs(self) -> bool:
        """Look whether it has said since the last look that it still turns; true when it has not for too many."""
        beats = self.line.beats
        self._silent = 0 if beats != self._beats else self._silent + 1
        self._beats = beats
        return self._silent >= HUNG_LOOKS

    def send(self, signum: signal.Signals) -> None:
        """Send a signal; one that comes too late does nothing."""
        # Not ``send_signal`` of the process: it looks for its end first, and takes the status that others wait for.
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    async def stop(self, deadline_seconds: float) -> None:
        """Ask it to end, then make it."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(deadline_seconds):
                await self.ended()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.ended()


class Gate:
    """Either children are being replaced, any number at a time, or one reload goes on: a child never begins with one
    configuration while the others change to the next."""

    def __init__(self) -> None:
        self._replacing = 0
        self._reloading = False
        self._closed = False
        self._moved = asyncio.Condition()

    async def close(self) -> None:
        """Let no reload begin any more, those that wait for it neither."""
        async with self._moved:
            self._closed = True
            self._moved.notify_all()

    @asynccontextmanager
    async def replacing(self) -> AsyncIterator[None]:
        """Replace one child."""
        async with self._moved:
            await self._moved.wait_for(lambda: not self._reloading)
            self._replacing += 1
        try:
            yield
        finally:
            async with self._moved:
                self._replacing -= 1
                self._moved.notify_all()

    @asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Have no child replaced meanwhile. Raises ``ReloadRefused`` once it is closed."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._closed or not (self._reloading or self._replacing))
            if self._closed:
                raise ReloadRefused("The configuration was not reloaded: patgate is about to end.")
            self._reloading = True
        try:
            yield
        finally:
            async with self._moved:
                self._reloading = False
                self._moved.notify_all()


class Keeper:
    """Keeps one slot filled: ``start`` once, then ``keep`` until ``stop``.

    A child that died is replaced by one of the ``spares`` where one stands by, else by a new process, as ``spec`` says
    at that time. ``hopeless`` hears the exit status of each that died and says whether another one cannot help; then
    the slot stays empty. ``on_ready`` hears of each child that is ready.
    """

    def __init__(
        self,
        spec: ChildSpec,
        log: Logger,
        stderr_fd: int = STDERR_FD,
        *,
        spares: "Spares | None" = None,
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
        """The process that fills the slot now."""
        return self._child.pid if self._child is not None else None

    @property
    def serving(self) -> Child | None:
        """The child that fills the slot and has been ready."""
        return self._child if self._is_ready else None

    def look(self) -> None:
        """End the child if it hangs; called every ``LOOK_SECONDS``."""
        child = self.serving
        if child is not None and not self._stopping.is_set() and child.hangs():
            self._log.error("child hangs and is ended", child_pid=child.pid, silent_looks=HUNG_LOOKS)
            self._is_ready = False
            child.send(signal.SIGKILL)

    async def start(self) -> None:
        """Fill the slot for the first time. Raises ``StartupRefused`` with the child's own sentence."""
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
        """Replace the child whenever it ends, at once or, when it keeps dying young, after a growing delay."""
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
            if await self._told_to_stop_within(delay_before(quick_deaths)):
                return
            async with self._gate.replacing():
                filled = await self._refill()
            if filled:
                ready_at = loop.time()
            elif self._child is None:
                quick_deaths += 1
        if self._child is not None:
            await self._child.ended()

    async def _refill(self) -> bool:
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
            self._spares.refill()  # not before: what serves comes first
        if refusal is None:
            self._log.info("child restarted", child_pid=child.pid)
            self._became_ready(child)
            return True
        self._log.error("child did not start", child_pid=child.pid, problem=refusal.sentence)
        return False

    async def _readiness(self, child: Child) -> StartRefusal | None:
        """As ``Child.ready``, of a child that the system has just started; ``kill`` did not see it until now."""
        if self._stopping.is_set():
            child.send(signal.SIGKILL)
        return await child.ready()

    def _became_ready(self, child: Child) -> None:
        self._is_ready = True
        if self._on_ready is not None:
            self._on_ready(child)

    async def _told_to_stop_within(self, seconds: float) -> bool:
        if seconds <= 0:
            return self._stopping.is_set()
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self, deadline_seconds: float) -> None:
        """Stop replacing, ask the child to end and, after the deadline, make it. May be called again to hurry."""
        self._stopping.set()
        if self._child is not None:
            await self._child.stop(deadline_seconds)

    def kill(self) -> None:
        """End the child now, without replacement."""
        self._stopping.set()
        if self._child is not None:
            self._child.send(signal.SIGKILL)

    async def end(self) -> None:
        """``kill``, and wait until it is gone."""
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


def lifeline() -> tuple[int, int]:
    """A pipe (read, write): children get the read end, which reads end-of-file when this process is gone."""
    return os.pipe()


def in_memory(document: bytes) -> int:
    """A descriptor to an anonymous file that holds ``document``; children read it by position, each from the start."""
    fd = os.memfd_create("patgate-boot", os.MFD_CLOEXEC)
    written = 0
    while written < len(document):
        written += os.pwrite(fd, document[written:], written)
    return fd
