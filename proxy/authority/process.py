"""The authority as a process: how it starts, says that it is ready, and ends.

Rules of this module:
1. Ready means: the store is open, the lease is held, workers can link, and the control socket takes connections.
   What serves the control plane is loaded after that, in a thread, because a host without an authority refuses
   requests and the control plane can wait a moment: its connections queue in the backlog meanwhile.
2. The process ends on SIGTERM, when the lifeline's other end closes, and when the data directory is no longer its own.
3. The control plane is handed in by the composition root: this package does not know it.
4. Orders of the supervisor are taken once the control plane serves. A COMMIT that fails has changed nothing.
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
from proxy.store import dialects, grants

CONTROL_SOCKET: Final = "control.sock"
COMMAND_SOCKET: Final = "command.sock"
"""The control socket of a command that works on the store by itself, under the data directory's lock."""

_log = get_logger("authority")


LoadControl = Callable[[], ServeControl]
"""Imports the control plane; called in a thread, once the authority is ready."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boot:
    """What the supervisor gives the process. Descriptors are owned by it from then on."""

    settings: Settings
    control_fd: int | None
    lifeline_fd: int
    say_ready: Callable[[], object]
    accept_older_store: bool
    successor: bool
    """Whether it takes the place of an authority that died under the same supervisor."""
    load_control: LoadControl
    orders: CommandSource


def run(
    settings: Settings,
    control_fd: int | None,
    lifeline_fd: int,
    say_ready: Callable[[], object],
    accept_older_store: bool = False,
    *,
    successor: bool = False,
    load_control: LoadControl,
    orders: CommandSource,
) -> int:
    """Run the authority to its end; the exit status. A start that fails raises PatgateError."""
    boot = Boot(
        settings=settings,
        control_fd=control_fd,
        lifeline_fd=lifeline_fd,
        say_ready=say_ready,
        accept_older_store=accept_older_store,
        successor=successor,
        load_control=load_control,
        orders=orders,
    )
    asyncio.run(serve(boot))
    return 0


async def serve(boot: Boot) -> None:
    """Serve until told to stop. Raises PatgateError when the start fails or the data directory is lost."""
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
            # From here on the supervisor listens for it, and loading takes long on a machine with much else to do.
            beating = asyncio.create_task(_beat(boot.orders), name="heartbeat")
            beating.add_done_callback(defects.noted)
            stack.callback(beating.cancel)
            serve_control = await asyncio.to_thread(boot.load_control)
            await asyncio.to_thread(prepare)
            control = _ControlSocket(authority, serve_control)
            stack.push_async_callback(control.close)
            await control.serve(unix)
            keeper = asyncio.create_task(keep_bound(path, control.serve), name="keep the control socket bound")
            keeper.add_done_callback(defects.noted)
            stack.callback(keeper.cancel)
            entrance = ControlPort(authority, serve_control)
            stack.push_async_callback(entrance.close)
            if boot.control_fd is not None:
                await entrance.open(boot.control_fd, boot.settings)
            boot.orders.serve(CommandHandler(authority, entrance).handle)
            stack.push_async_callback(boot.orders.end)
            chores = asyncio.create_task(authority.housekeeping.run(), name="housekeeping")
            chores.add_done_callback(defects.noted)

            async def end_chores() -> None:
                chores.cancel()
                # What it has begun in the store ends before the store is closed.
                await asyncio.gather(chores, return_exceptions=True)

            stack.push_async_callback(end_chores)
            await _until_told(stop, authority)
    finally:
        loop.remove_reader(boot.lifeline_fd)
        loop.remove_signal_handler(signal.SIGTERM)


class _ControlSocket:
    """The control plane on the unix socket, which may be bound again while connections of before go on."""

    def __init__(self, authority: Authority, serve_control: ServeControl) -> None:
        self._authority = authority
        self._serve_control = serve_control
        self._serving: deque[AsyncExitStack] = deque()

    async def serve(self, unix: socket.socket) -> None:
        """Serve on this one too; of those before it, the last goes on with what is connected to it."""
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
    """The control plane for one command, on a socket of its own; the caller holds the data directory's lock.

    Raises PatgateError.
    """
    async with AsyncExitStack() as stack:
        authority = await stack.enter_async_context(Authority(settings, linked=False))
        path = settings.data_dir / COMMAND_SOCKET
        unix = stack.enter_context(bind_unix(path))
        stack.callback(path.unlink, missing_ok=True)
        await stack.enter_async_context(load_control()(authority, tcp=(), unix=[unix], hosts=()))
        yield path


def prepare() -> None:
    """Do what does not need the store before the first question comes. Takes a while, so not in the event loop."""
    grants.prepare(PREFIXES_AT_ONCE, dialects.embedded())


async def _until_told(stop: asyncio.Event, authority: Authority) -> None:
    told = asyncio.create_task(stop.wait(), name="told to stop")
    lost = asyncio.create_task(authority.lost(), name="data directory lost")
    try:
        await asyncio.wait((told, lost), return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            raise DataDirLost("the data directory was taken away or given to another patgate")
    finally:
        told.cancel()
        lost.cancel()
        await asyncio.gather(told, lost, return_exceptions=True)


async def _beat(orders: CommandSource) -> None:
    while True:
        orders.beat()
        await asyncio.sleep(BEAT_SECONDS)
