"""The socket of an accepted client connection, cheaper than ``socket.socket`` (docs/decisions/0020)."""

from __future__ import annotations

import os
import socket
from _socket import socket as RawSocket


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
