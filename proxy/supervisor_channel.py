"""The line between the supervisor and one child: orders and descriptors one way, answers and heartbeats the other.

A pair of AF_UNIX SOCK_SEQPACKET sockets carries one JSON object a message, ``{"id", "order", …}`` with descriptors
beside it (SCM_RIGHTS, unix(7)), and back ``{"id", "error": SENTENCE or null}`` or ``{"beat": true}``. Rules:

1. Neither end ever blocks: a heartbeat that finds no room is left out, an order that finds none has failed.
2. The child works on one order at a time, in their order; what an order raises as PatgateError is its answer.
3. Descriptors that come belong to whoever handles the order; those of an order that nobody handles are closed.
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
    """What both ends do: messages in, messages out."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)
        self._open = False

    def open(self) -> None:
        """Begin to read."""
        self._open = True
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Read no more and close."""
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
        """A message has come, with these descriptors, which are ours now."""

    def _ended(self) -> None:
        self.close()


class ChildChannel(_End):
    """The child's end (``core.child.Orders``)."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._handle: Callable[[ControlCommand], Any] | None = None
        self._waiting: deque[tuple[int, ControlCommand]] = deque()
        self._worker: asyncio.Task[None] | None = None

    def serve(self, handle: Callable[[ControlCommand], Any]) -> None:
        """Have ``handle`` (a coroutine function) carry out each order from now on."""
        self._handle = handle
        self.open()

    def beat(self) -> None:
        """Tell the supervisor that this process still turns, also before orders are served."""
        with contextlib.suppress(OSError):
            self._socket.send(_BEAT)

    async def end(self) -> None:
        """Take no more orders."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        self.close()
        for _, order in self._waiting:
            close_all(order.fds)
        self._waiting.clear()

    def _received(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        order = ControlCommand(name=str(message.get("order")), details=message, fds=fds)
        self._waiting.append((int(message.get("id", 0)), order))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="orders")
            self._worker.add_done_callback(defects.noted)

    async def _work(self) -> None:
        while self._waiting:
            number, order = self._waiting.popleft()
            error: str | None = None
            try:
                assert self._handle is not None  # noqa: S101 - nothing is read before ``serve``
                await self._handle(order)
            except PatgateError as refused:
                error = str(refused) or type(refused).__name__
            except Exception as failed:  # noqa: BLE001 - whatever it is, the supervisor must not wait for its deadline
                error = f"an order failed ({type(failed).__name__})"
            with contextlib.suppress(OSError):
                self._socket.send(json.dumps({"id": number, "error": error}).encode())


class SupervisorChannel(_End):
    """The supervisor's end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._number = 0
        self._asked: dict[int, asyncio.Future[str | None]] = {}
        self.beats = 0
        """Heartbeats so far."""

    @property
    def is_open(self) -> bool:
        """Whether there is anybody at the other end, as far as is known."""
        return self._open

    async def ask(self, order: str, *, fds: Sequence[int] = (), seconds: float, **details: object) -> None:
        """Have an order carried out. Raises ``OrderRefused``: the child's own sentence, or that it did not answer."""
        self._number = number = self._number + 1
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._send({"id": number, "order": order, **details}, fds)
            async with asyncio.timeout(seconds):
                error = await answer
        except (OSError, TimeoutError) as failed:
            why = f"it did not answer within {seconds:g} s" if self._open else "it has ended"
            raise CommandRefused(why, answered=False) from failed
        finally:
            del self._asked[number]
        if error is not None:
            raise CommandRefused(error)

    def tell(self, order: str, **details: object) -> None:
        """Give an order without waiting for its answer; one that cannot be given is left out."""
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
        elif (asked := self._asked.get(message.get("id", 0))) is not None and not asked.done():
            asked.set_result(message.get("error"))

    def close(self) -> None:
        super().close()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ConnectionResetError())


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
