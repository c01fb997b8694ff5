"""Disconnects of a client connection: resetting it, and detecting that the client has left while reading is paused.

A client that the gateway does not read, because it has pipelined too much or because the backend does not take its
body, can leave without the event loop noticing: the end lies behind unread bytes, and a loop does not watch a socket
at all while reading is paused. The sweep asks the kernel instead.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any, Final

_CLOSED: Final = 7
_CLOSE_WAIT: Final = 8
"""Connection states in the first byte of ``TCP_INFO`` (tcp(7)): reset, and ended by the peer."""

_RESET: Final = struct.pack("ii", 1, 0)
"""``SO_LINGER`` with a time of 0: closing the socket resets the connection."""


def has_left(transport: asyncio.Transport, *, half_close: bool) -> bool:
    """Whether the peer has reset the connection or, unless ``half_close`` allows this, ended its sending side."""
    bound = _socket(transport)
    if bound is None:
        return False
    try:
        state: int = bound.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return False  # the socket is closed, and the event loop reports that
    return state == _CLOSED or (state == _CLOSE_WAIT and not half_close)


def break_off(transport: asyncio.Transport) -> None:
    """Reset the connection, so that the answer does not look complete."""
    bound = _socket(transport)
    if bound is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


def _socket(transport: asyncio.Transport) -> Any:
    with suppress(AttributeError):  # asyncio's TLS transport forgets its protocol when it is closed twice
        return transport.get_extra_info("socket")
    return None
