"""Child process: starts it, reads its readiness, detects that it hangs, signals it and waits for its end.

A child is ``python -P -m proxy.app ROLE …`` with descriptors, never secrets, on its command line. It writes ``ready``
or ``error: SENTENCE`` once to its ready pipe, and ends by itself when the lifeline's other end closes, which the kernel
does even for a supervisor that was killed. Exits are awaited, not polled for. A ready child takes commands and sends
heartbeats over its channel (``proxy.supervisor_channel``).
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from proxy import startup, supervisor_channel
from proxy.core.ipc.child_protocol import ERROR, READY, SPARE
from proxy.supervisor import sd_notify
from proxy.supervisor_channel import SupervisorChannel

STDERR_FD: Final = 2

ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType({"PYDANTIC_DISABLE_PLUGINS": "__all__"})
"""The search for pydantic's plugins takes 20 ms of each start, and patgate has none."""

HUNG_LOOKS: Final = 10
"""Checks in a row without a heartbeat after which a child counts as hung. Checks are counted, not time, so that a
machine that slept or a process group that was stopped does not count: the supervisor did not check either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildSpec:
    """How to start one child; ``Child.spawn`` adds two pipes and a channel to ``command`` and ``fds``."""

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
    """A child that did not become ready: its own sentence, or ``None`` when it ended without one."""

    sentence: str | None


PROGRAM: Final = startup.program("proxy.app")
"""The start of a child's command line: this package, run by the current interpreter."""


def command_line(role: str, *arguments: str) -> tuple[str, ...]:
    """The command line of a child of this package."""
    return (*PROGRAM, role, *arguments)


def _environment() -> dict[str, str]:
    """The child's environment without our own variables: they may be secrets."""
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
        channel: SupervisorChannel,
    ) -> None:
        self.channel = channel
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
        """Start the process, for the first time or ``later``. Raises ``OSError`` when the system cannot."""
        ready_in, ready_out = os.pipe()
        ours, theirs = supervisor_channel.pair()
        ready_pipe = os.fdopen(ready_in, "rb", buffering=0)
        reader = asyncio.StreamReader()
        with ExitStack() as passed, ExitStack() as kept:
            passed.callback(os.close, ready_out)
            passed.callback(theirs.close)
            kept.callback(ours.close)
            kept.callback(ready_pipe.close)
            # Nothing is awaited after the process exists, so that a cancelled start leaves no process behind.
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), ready_pipe
            )
            kept.callback(transport.close)
            pipes = (
                *("--lifeline-fd", str(spec.lifeline_fd)),
                *("--ready-fd", str(ready_out)),
                *("--channel-fd", str(theirs.fileno())),
            )
            # When cancelled, it ends the process itself.
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                *(spec.later if later else spec.first),
                *pipes,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stderr_fd,  # standard output is for the command's own output
                stderr=stderr_fd,
                pass_fds=(*spec.fds, spec.lifeline_fd, ready_out, theirs.fileno()),
                env=_environment(),
            )
            kept.pop_all()
        channel = SupervisorChannel(ours)
        channel.open()
        return cls(process, reader, transport, pipes, channel)

    async def stands_by(self) -> bool:
        """Wait for a spare's first line: whether it has loaded everything."""
        return await self._ready.readline() == SPARE

    def assign(self, spec: ChildSpec, commands_fd: int) -> None:
        """Make this spare the child that ``spec`` describes. Raises ``OSError`` when it has ended."""
        arguments = (*spec.command[len(PROGRAM) :], *spec.later, *self._pipes)
        os.write(commands_fd, json.dumps(arguments).encode() + b"\n")

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

    def close_ready_pipe(self) -> None:
        """Stop reading the ready pipe of a child whose readiness is no longer awaited."""
        self._transport.close()

    async def ended(self) -> int:
        """Wait for its end: the exit status, or minus the number of the signal that killed it."""
        status = await self._process.wait()
        self.channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return status

    def hangs(self) -> bool:
        """Check for a heartbeat since the last check; true after ``HUNG_LOOKS`` checks in a row without one."""
        beats = self.channel.beats
        self._silent = 0 if beats != self._beats else self._silent + 1
        self._beats = beats
        return self._silent >= HUNG_LOOKS

    def send(self, signum: signal.Signals) -> None:
        """Send a signal; does nothing once the process has ended."""
        # Not the process's own ``send_signal``: it polls for the end first and takes the status that ``ended`` awaits.
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    async def stop(self, deadline_seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after the deadline; returns when the process has ended."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(deadline_seconds):
                await self.ended()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self.ended()


def lifeline() -> tuple[int, int]:
    """A pipe (read, write): children get the read end, which reads end-of-file when this process has ended."""
    return os.pipe()


def in_memory(document: bytes) -> int:
    """A descriptor to an anonymous file that holds ``document``; children read it by position, each from the start."""
    fd = os.memfd_create("patgate-boot", os.MFD_CLOEXEC)
    written = 0
    while written < len(document):
        written += os.pwrite(fd, document[written:], written)
    return fd
