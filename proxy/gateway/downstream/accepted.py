"""Accepted client connections on their way to the event loop: the socket, and the coroutine that takes it over.

Half of what ``socket.accept`` and a task for each connection cost is avoided here (docs/decisions/0020).
"""

from __future__ import annotations

import asyncio
import os
import socket
from _socket import socket as RawSocket
from collections.abc import Callable, Coroutine
from typing import Any

from proxy.observe import defects


class AcceptedSocket(socket.socket):
    """A stream socket for the accepted descriptor ``fileno``, of the family and protocol of the listening socket.

    Event loops read the family and the type several times for each connection. Here they are plain numbers, where
    ``socket.socket`` looks up a member of an enumeration each time.
    """

    __slots__ = ()
    family = RawSocket.family  # type: ignore[assignment]
    type = int(socket.SOCK_STREAM)  # type: ignore[assignment]

    def __init__(self, family: int, type_: int, proto: int, fileno: int) -> None:
        RawSocket.__init__(self, family, type_, proto, fileno)
        # What ``socket.socket.__init__`` sets.
        self._io_refs = 0
        self._closed = False

    def dup(self) -> AcceptedSocket:
        """A second descriptor for the same connection."""
        return AcceptedSocket(self.family, self.type, self.proto, os.dup(self.fileno()))


class Handover:
    """Runs a coroutine of the event loop that waits for one future: ``loop.connect_accepted_socket``.

    It begins at once and not in the next turn of the loop, and costs a third of a task. ``ended`` is called when the
    coroutine has ended, with its OSError or None; any other error is a defect.
    """

    __slots__ = ("_ended", "_run", "_waiter")

    def __init__(self, run: Coroutine[Any, Any, object], ended: Callable[[Handover, OSError | None], None]) -> None:
        self._run = run
        self._ended = ended
        self._waiter: asyncio.Future[Any] | None = None

    def advance(self, _: object = None) -> None:
        """Run the coroutine until it waits, or to its end."""
        error: OSError | None = None
        try:
            waiter = self._run.send(None)
        except StopIteration:
            pass
        except asyncio.CancelledError:
            pass
        except OSError as refused:
            error = refused
        except Exception as defect:  # noqa: BLE001 - nobody awaits it, so that it is reported here
            defects.report("a connection was not taken over", defect)
        else:
            self._waiter = waiter
            waiter.add_done_callback(self.advance)
            return
        self._waiter = None
        self._ended(self, error)

    def cancel(self) -> None:
        """Close the connection, unless it has been taken over."""
        if self._waiter is not None:
            self._waiter.cancel()
