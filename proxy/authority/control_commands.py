"""The authority's orders: to run on another configuration, and to show what the supervisor knows of the gateway.

Rules of this module:
1. PREPARE reads and changes nothing. COMMIT has the roles synced first: the one step that can fail for reasons of its
   own, and when it does nothing else has changed.
2. The control API on the unix socket goes on through it all.
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
    """``proxy.control.server.serving``."""

    def __call__(
        self,
        plane: Authority,
        /,
        *,
        tcp: Sequence[socket.socket],
        unix: Sequence[socket.socket],
        hosts: Iterable[str],
    ) -> AbstractAsyncContextManager[None]: ...


class ControlPort:
    """The control listener on TCP, which may become another while everything else goes on."""

    def __init__(self, authority: Authority, serve_control: ServeControl) -> None:
        self._authority = authority
        self._serve_control = serve_control
        self._serving = AsyncExitStack()
        self._identity: tuple[int, str] | None = None

    async def open(self, fd: int, settings: Settings) -> AsyncExitStack:
        """Serve on the listening socket ``fd``, which is ours from now on, unless it is the one in use.

        What served until now is returned, for the caller to close. Raises OSError.
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
        """Serve no more."""
        await self._serving.aclose()


class CommandHandler:
    """Carries out the orders of the supervisor, one after the other."""

    def __init__(self, authority: Authority, entrance: ControlPort) -> None:
        self._authority = authority
        self._entrance = entrance
        self._prepared: tuple[Settings, int] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def handle(self, order: ControlCommand) -> None:
        """Carry one order out. Raises PatgateError where it cannot be."""
        if order.name == CommandName.PREPARE:
            self._drop()
            document, control = order.fds
            settings = await asyncio.to_thread(read_settings, document)
            self._prepared = (settings, control)
            return
        for fd in order.fds:
            os.close(fd)
        if order.name == CommandName.COMMIT:
            await self._commit()
        elif order.name == CommandName.ABORT:
            self._drop()
        elif order.name == CommandName.STATE:
            details = order.details
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
            raise CommandRefused("it does not know this order")

    async def _commit(self) -> None:
        if self._prepared is None:
            raise CommandRefused("nothing was prepared")
        (settings, control), self._prepared = self._prepared, None
        await self._authority.follow(settings)
        logs.change(level=settings.log.level, line_format=settings.log.format)
        _log.info("configuration changed", epoch=self._authority.epoch)
        try:
            former = await self._entrance.open(control, settings)
        except OSError as error:
            # Tokens are decided all the same; only health and metrics have no listener.
            _log.error("the control listener cannot be served", error=error)
            return
        # What is being asked there has a while to end; the workers must not wait for it.
        self._closing = asyncio.create_task(former.aclose(), name="former control listener")
        self._closing.add_done_callback(defects.noted)

    def _drop(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            os.close(prepared[1])
