"""The abrupt ends of a client's connection: one that we break off, and one that the event loop does not see.

A client that is read no further, because it has sent too much ahead or because the backend does not take its body, can
leave without the event loop noticing: its end lies behind bytes that nobody fetches, and a loop does not watch a socket
for anything while reading is paused. The kernel knows, and is asked by the sweep.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any, Final

_CLOSED: Final = 7
_CLOSE_WAIT: Final = 8
"""States of a connection that the first byte of ``TCP_INFO`` (tcp(7)) gives: reset, and ended by the peer."""


_RESET: Final = struct.pack("ii", 1, 0)
"""``SO_LINGER`` with no time: closing the socket resets the connection."""


def has_left(transport: asyncio.Transport, *, half_close: bool) -> bool:
    """Whether the peer has reset the connection or, unless ``half_close`` says that this is no leaving, ended it."""
    bound = _socket(transport)
    if bound is None:
        return False
    try:
        state: int = bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return False  # it is closed here, and the loop says so
    return state == _CLOSED or (state == _CLOSE_WAIT and not half_close)


def break_off(transport: asyncio.Transport) -> None:
    """Reset the connection, so that what was sent does not look whole."""
    bound = _socket(transport)
    if bound is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _socket(transport: asyncio.Transport) -> Any:
    with suppress(AttributeError):  # of asyncio's TLS transport, which closed twice forgets its protocol
        return transport.get_extra_info("socket")
    return None
