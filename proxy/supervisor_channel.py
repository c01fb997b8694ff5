"""The channel between the supervisor and one child: commands with descriptors, replies and heartbeats.

A pair of AF_UNIX SOCK_SEQPACKET sockets carries one JSON object a message: to the child ``{"id", "order", …}`` with
descriptors (SCM_RIGHTS, unix(7)), and back ``{"id", "error": SENTENCE or null}`` or ``{"beat": true}``. Rules:

1. Neither end ever blocks: if the socket is full, a heartbeat is dropped and a command fails.
2. The child carries out one command at a time, in order; the PatgateError that a command raises is its reply.
3. The handler of a command owns its descriptors; those of a command without a handler are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from proxy.core.errors import PatgateError
from proxy.core.ipc.child_protocol import CommandRefused, ControlCommand
from proxy.observe import defects

_MESSAGE_BYTES: Final = 64 * 1024
MOST_DESCRIPTORS: Final = 250
"""Descriptors in one message (the kernel's SCM_MAX_FD is 253)."""
_BEAT: Final = b'{"beat":true}'


def pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end and the child's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


class _End(ABC):
    """The part that both ends share: receives messages."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)
        self._open = False

    def open(self) -> None:
        """Start to read."""
        self._open = True
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Stop reading and close the socket."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(self._socket, _MESSAGE_BYTES, MOST_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            data, fds, flags = b"", [], 0
        message: dict[str, Any] | None = None
        if data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            with contextlib.suppress(ValueError):
                message = json.loads(data)
        if not isinstance(message, dict):
            close_all(fds)
            if not data:
                self._ended()
            return
        self._received(message, tuple(fds))

    @abstractmethod
    def _received(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Handle a message; its descriptors now belong to this end."""

    def _ended(self) -> None:
        self.close()


class ChildChannel(_End):
    """The child's end (a ``core.ipc.child_protocol.CommandSource``)."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._handle: Callable[[ControlCommand], Any] | None = None
        self._waiting: deque[tuple[int, ControlCommand]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def serve(self, handle: Callable[[ControlCommand], Any]) -> None:
        """Start to pass each command to ``handle`` (a coroutine function)."""
        self._handle = handle
        self.open()

    def beat(self) -> None:
        """Send a heartbeat to the supervisor, also before ``serve``."""
        with contextlib.suppress(OSError):
            self._socket.send(_BEAT)

    async def end(self) -> None:
        """Accept no more commands."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        self.close()
        for _, command in self._waiting:
            close_all(command.fds)
        self._waiting.clear()

    def _received(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        command = ControlCommand(name=str(message.get("order")), details=message, fds=fds)
        self._waiting.append((int(message.get("id", 0)), command))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="commands")
            self._worker.add_done_callback(defects.noted)

    async def _work(self) -> None:
        while self._waiting:
            number, command = self._waiting.popleft()
            error: str | None = None
            try:
                assert self._handle is not None  # noqa: S101 - nothing is read before ``serve``
                await self._handle(command)
            except PatgateError as refused:
                error = str(refused) or type(refused).__name__
            except Exception as failed:  # noqa: BLE001 - the supervisor must not wait for its deadline
                error = f"a command failed ({type(failed).__name__})"
            with contextlib.suppress(OSError):
                self._socket.send(json.dumps({"id": number, "error": error}).encode())


class SupervisorChannel(_End):
    """The supervisor's end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._number = 0
        self._pending: dict[int, asyncio.Future[str | None]] = {}
        self.beats = 0
        """Heartbeats received so far."""

    @property
    def is_open(self) -> bool:
        """Whether the child has not closed its end, as far as is known."""
        return self._open

    async def ask(self, order: str, *, fds: Sequence[int] = (), seconds: float, **details: object) -> None:
        """Send a command and wait for its reply.

        Raises ``CommandRefused`` with the child's own sentence, or if it did not answer within ``seconds``.
        """
        self._number = number = self._number + 1
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._send({"id": number, "order": order, **details}, fds)
            async with asyncio.timeout(seconds):
                error = await answer
        except (OSError, TimeoutError) as failed:
            why = f"it did not answer within {seconds:g} s" if self._open else "it has ended"
            raise CommandRefused(why, answered=False) from failed
        finally:
            del self._pending[number]
        if error is not None:
            raise CommandRefused(error)

    def tell(self, order: str, **details: object) -> None:
        """Send a command without waiting for a reply; it is dropped if it cannot be sent."""
        with contextlib.suppress(OSError):
            self._send({"id": 0, "order": order, **details}, ())

    def _send(self, message: dict[str, object], fds: Sequence[int]) -> None:
        if not self._open:
            raise ConnectionResetError
        socket.send_fds(self._socket, [json.dumps(message).encode()], fds)

    def _received(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        close_all(fds)
        if "beat" in message:
            self.beats += 1
        elif (answer := self._pending.get(message.get("id", 0))) is not None and not answer.done():
            answer.set_result(message.get("error"))

    def close(self) -> None:
        """Close the socket; pending commands fail."""
        super().close()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError())


def close_all(fds: Sequence[int]) -> None:
    """Close all these descriptors; errors are ignored."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
