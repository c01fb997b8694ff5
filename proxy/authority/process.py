"""Authority process: starts the authority, reports that it is ready, serves the control plane, and ends.

Rules of this module:
1. Ready means: the store is open, the lease is held, workers can link, and the control socket takes connections. The
   control plane is loaded after that, in a thread, because a host without an authority refuses requests; control
   connections wait in the backlog meanwhile.
2. The process ends on SIGTERM, when the lifeline's other end closes, and when the data directory is no longer its own.
3. The composition root passes the control plane in: this package does not import it.
4. Commands of the supervisor are executed once the control plane serves. A COMMIT that fails has changed nothing.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.authority.control_commands import CommandHandler, ControlPort, ServeControl
from proxy.authority.runtime import Authority, GatewayStatus
from proxy.authority.sockets import bind_unix, keep_bound
from proxy.core.errors import DataDirLost
from proxy.core.ipc.child_protocol import BEAT_SECONDS, CommandSource
from proxy.core.ipc.wire import PREFIXES_AT_ONCE
from proxy.observe import defects
from proxy.observe.logs import get_logger
from proxy.settings.model import Settings
from proxy.settings.store_urls import EMBEDDED, is_shared
from proxy.store import dialects, grants

CONTROL_SOCKET: Final = "control.sock"
COMMAND_SOCKET: Final = "command.sock"
"""The control socket of a command that works on the store by itself, holding the data directory's lock."""

_log = get_logger("authority")


LoadControl = Callable[[], ServeControl]
"""Imports the control plane; called in a thread, once the authority is ready."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boot:
    """What the supervisor passes to the process, which owns the descriptors."""

    settings: Settings
    control_fd: int | None
    lifeline_fd: int
    say_ready: Callable[[], object]
    accept_older_store: bool
    successor: bool
    """Whether it replaces an authority that died under the same supervisor."""
    load_control: LoadControl
    commands: CommandSource


def run(
    settings: Settings,
    control_fd: int | None,
    lifeline_fd: int,
    say_ready: Callable[[], object],
    accept_older_store: bool = False,
    *,
    successor: bool = False,
    load_control: LoadControl,
    commands: CommandSource,
) -> int:
    """Run the authority to its end and return the exit status. Raises PatgateError when the start fails."""
    boot = Boot(
        settings=settings,
        control_fd=control_fd,
        lifeline_fd=lifeline_fd,
        say_ready=say_ready,
        accept_older_store=accept_older_store,
        successor=successor,
        load_control=load_control,
        commands=commands,
    )
    asyncio.run(serve(boot))
    return 0


async def serve(boot: Boot) -> None:
    """Serve until SIGTERM or the end of the lifeline.

    Raises PatgateError when the start fails or the data directory is lost.
    """
    loop = asyncio.get_running_loop()
    defects.install(loop)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(boot.lifeline_fd, stop.set)
    try:
        async with AsyncExitStack() as stack:
            authority = await stack.enter_async_context(
                Authority(boot.settings, accept_older_store=boot.accept_older_store, successor=boot.successor)
            )
            path = boot.settings.data_dir / CONTROL_SOCKET
            unix = stack.enter_context(bind_unix(path))
            stack.callback(path.unlink, missing_ok=True)
            authority.show(GatewayStatus(starting=True))  # until the supervisor says otherwise
            boot.say_ready()
            _log.info("authority is ready", epoch=authority.epoch)
            # The supervisor expects heartbeats from here on, and loading may take long on a busy machine.
            beating = asyncio.create_task(_beat(boot.commands), name="heartbeat")
            beating.add_done_callback(defects.noted)
            stack.callback(beating.cancel)
            serve_control = await asyncio.to_thread(boot.load_control)
            await asyncio.to_thread(prepare, boot.settings.store)
            control = _ControlSocket(authority, serve_control)
            stack.push_async_callback(control.close)
            await control.serve(unix)
            keeper = asyncio.create_task(keep_bound(path, control.serve), name="keep the control socket bound")
            keeper.add_done_callback(defects.noted)
            stack.callback(keeper.cancel)
            control_port = ControlPort(authority, serve_control)
            stack.push_async_callback(control_port.close)
            if boot.control_fd is not None:
                await control_port.open(boot.control_fd, boot.settings)
            boot.commands.serve(CommandHandler(authority, control_port).handle)
            stack.push_async_callback(boot.commands.end)
            chores = asyncio.create_task(authority.housekeeping.run(), name="housekeeping")
            chores.add_done_callback(defects.noted)

            async def end_chores() -> None:
                chores.cancel()
                # Its running transaction ends before the store is closed.
                await asyncio.gather(chores, return_exceptions=True)

            stack.push_async_callback(end_chores)
            await _until_stopped(stop, authority)
    finally:
        loop.remove_reader(boot.lifeline_fd)
        loop.remove_signal_handler(signal.SIGTERM)


class _ControlSocket:
    """The control plane on the unix socket, which may be bound again while older connections continue."""

    def __init__(self, authority: Authority, serve_control: ServeControl) -> None:
        self._authority = authority
        self._serve_control = serve_control
        self._serving: deque[AsyncExitStack] = deque()

    async def serve(self, unix: socket.socket) -> None:
        """Serve on this socket too; of the former ones, only the last keeps serving its connections."""
        async with AsyncExitStack() as stack:
            stack.enter_context(unix)
            await stack.enter_async_context(self._serve_control(self._authority, tcp=(), unix=[unix], hosts=()))
            self._serving.append(stack.pop_all())
        while len(self._serving) > 2:
            await self._serving.popleft().aclose()

    async def close(self) -> None:
        while self._serving:
            await self._serving.popleft().aclose()


@asynccontextmanager
async def offline(settings: Settings, load_control: LoadControl) -> AsyncIterator[Path]:
    """Serve the control plane for one command on a private socket; the caller holds the data directory's lock.

    Raises PatgateError.
    """
    async with AsyncExitStack() as stack:
        authority = await stack.enter_async_context(Authority(settings, linked=False))
        path = settings.data_dir / COMMAND_SOCKET
        unix = stack.enter_context(bind_unix(path))
        stack.callback(path.unlink, missing_ok=True)
        await stack.enter_async_context(load_control()(authority, tcp=(), unix=[unix], hosts=()))
        yield path


def prepare(store: str = EMBEDDED) -> None:
    """Do the slow preparations that need no store, before the first request. Not to be called in the event loop.

    ``store`` is as in the settings, which a spare does not know yet.
    """
    grants.prepare(PREFIXES_AT_ONCE, dialects.of_url(store) if is_shared(store) else dialects.embedded())


async def _until_stopped(stop: asyncio.Event, authority: Authority) -> None:
    stopped = asyncio.create_task(stop.wait(), name="stop requested")
    lost = asyncio.create_task(authority.lost(), name="data directory lost")
    try:
        await asyncio.wait((stopped, lost), return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            lost.result()
            raise DataDirLost("the data directory was taken away or given to another patgate")
    finally:
        stopped.cancel()
        lost.cancel()
        await asyncio.gather(stopped, lost, return_exceptions=True)


async def _beat(commands: CommandSource) -> None:
    while True:
        commands.beat()
        await asyncio.sleep(BEAT_SECONDS)
