"""Control commands: the authority's handling of the supervisor's reload and state commands.

Rules of this module:
1. PREPARE only reads. COMMIT writes the roles first: the one step that can fail, and then nothing else has changed.
2. The control API on the unix socket is served throughout.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final, Protocol

from proxy.authority.runtime import Authority, GatewayStatus
from proxy.core.ipc.child_protocol import CommandName, CommandRefused, ControlCommand
from proxy.observe import defects, logs
from proxy.settings.boot import read_settings
from proxy.settings.model import Settings

_CONTROL: Final = "control"

_log = logs.get_logger("authority")


class ServeControl(Protocol):
    """The type of ``proxy.control.server.serving``."""

    def __call__(
        self,
        authority: Authority,
        /,
        *,
        tcp: Sequence[socket.socket],
        unix: Sequence[socket.socket],
        hosts: Iterable[str],
    ) -> AbstractAsyncContextManager[None]:
        """Serve the control API on these sockets while the block runs."""
        ...


class ControlPort:
    """The control listener on TCP, which a reload may replace while everything else continues."""

    def __init__(self, authority: Authority, serve_control: ServeControl) -> None:
        self._authority = authority
        self._serve_control = serve_control
        self._serving = AsyncExitStack()
        self._identity: tuple[int, str] | None = None

    async def open(self, fd: int, settings: Settings) -> AsyncExitStack:
        """Serve on the listening socket ``fd``, which this object owns from now on, unless it is the one in use.

        Returns the former listener, for the caller to close. Raises OSError.
        """
        host = settings.listen.control.bind.host
        identity = (os.fstat(fd).st_ino, host)
        former = AsyncExitStack()
        if identity == self._identity:
            os.close(fd)
            return former
        async with AsyncExitStack() as stack:
            bound = stack.enter_context(socket.socket(fileno=fd))
            bound.setblocking(False)
            await stack.enter_async_context(self._serve_control(self._authority, tcp=[bound], unix=(), hosts=[host]))
            former, self._serving = self._serving, stack.pop_all()
        self._identity = identity
        return former

    async def close(self) -> None:
        """Stop serving."""
        await self._serving.aclose()


class CommandHandler:
    """Executes the supervisor's commands, one after the other."""

    def __init__(self, authority: Authority, control_port: ControlPort) -> None:
        self._authority = authority
        self._control_port = control_port
        self._prepared: tuple[Settings, int] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def handle(self, command: ControlCommand) -> None:
        """Execute one command. Raises PatgateError when it fails."""
        if command.name == CommandName.PREPARE:
            self._drop()
            document, control = command.fds
            settings = await asyncio.to_thread(read_settings, document)
            self._prepared = (settings, control)
            return
        for fd in command.fds:
            os.close(fd)
        if command.name == CommandName.COMMIT:
            await self._commit()
        elif command.name == CommandName.ABORT:
            self._drop()
        elif command.name == CommandName.STATE:
            details = command.details
            self._authority.show(
                GatewayStatus(
                    starting=bool(details["starting"]),
                    draining=bool(details["draining"]),
                    workers=int(details["workers"]),
                    reload_ok=bool(details["reload_ok"]),
                    reload_time=float(details["reload_time"]),
                )
            )
        else:
            raise CommandRefused("the command is unknown")

    async def _commit(self) -> None:
        if self._prepared is None:
            raise CommandRefused("nothing was prepared")
        (settings, control), self._prepared = self._prepared, None
        await self._authority.follow(settings)
        logs.change(level=settings.log.level, line_format=settings.log.format)
        _log.info("configuration changed", epoch=self._authority.epoch)
        try:
            former = await self._control_port.open(control, settings)
        except OSError as error:
            # Tokens are still resolved; only health and metrics have no listener.
            _log.error("the control listener cannot be served", error=error)
            return
        # Running requests get time to end; the workers must not wait for it.
        self._closing = asyncio.create_task(former.aclose(), name="former control listener")
        self._closing.add_done_callback(defects.noted)

    def _drop(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            os.close(prepared[1])
