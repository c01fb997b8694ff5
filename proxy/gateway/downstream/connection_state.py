"""The states of a client connection, and the transitions between them as one table.

Rules of this module:
1. A connection is in exactly one state; an event takes it from one state to the next by ``TRANSITIONS`` alone.
2. A pair that is not in the table is a defect and raises. The event loop then closes the connection.
3. The state says what happens to requests. The flow control of the two directions is independent of it, and belongs
   to ``client_stream``: input paused, input ended, output full.

One request on a connection that is kept open takes three events::

    IDLE --STARTED--> STARTING --SETTLED--> EXCHANGE --ENDED--> IDLE

An answer that is complete at once (a refusal) ends the exchange while it starts, and the next pipelined request may
start without the event loop between them: ``STARTING --ENDED--> NEXT --STARTED--> STARTING``. After a few of these
the connection waits until other connections have had their turn: ``NEXT --YIELDED--> YIELDING --RESUMED--> IDLE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class ConnectionState(IntEnum):
    """What a connection is doing. Only STARTING and EXCHANGE have an exchange.

    States are numbered in steps of 16, so that the sum of state and event is a place in one array (``after``).
    """

    OPENING = 0x00
    """Accepted; the event loop has no transport for it yet (TLS handshake)."""
    IDLE = 0x10
    """No request has begun. The buffer is empty, or waits until the client reads its answers."""
    HEAD = 0x20
    """Part of a head has arrived, and the time for a head runs."""
    HELD = 0x30
    """Requests may have arrived, and the listener starts none for now (reload)."""
    STARTING = 0x40
    """An exchange has begun, and the call that began it has not returned."""
    NEXT = 0x50
    """That exchange has ended within the call; the next request in the buffer may start."""
    YIELDING = 0x60
    """More requests are in the buffer, and other connections have their turn first."""
    EXCHANGE = 0x70
    """An exchange waits for its body, the authority, the backend or the client."""
    CLOSING = 0x80
    """The gateway or the client is ending the connection: what still arrives is thrown away."""
    CLOSED = 0x90
    """The transport is gone."""


class ConnectionEvent(IntEnum):
    """What happens to a connection."""

    OPENED = 0
    """It has a transport."""
    HEAD_BEGUN = 1
    """Part of a head is in the buffer, and it may become a valid one."""
    STARTED = 2
    """A head is complete: an exchange begins."""
    REFUSED = 3
    """A head came too late or cannot become a valid one: an exchange begins that only answers this."""
    ENDED = 4
    """The answer of the exchange is complete."""
    SETTLED = 5
    """The call that started requests returns: no further request can start now."""
    HELD = 6
    """A request may have arrived while the listener holds requests."""
    YIELDED = 7
    """The connection has started enough requests in one turn."""
    RESUMED = 8
    """Its turn has come again."""
    SHUT = 9
    """The gateway closes the connection."""
    LEFT = 10
    """The client has left, or the connection is lost."""
    LOST = 11
    """The event loop has closed the transport; always after LEFT."""


_S: Final = ConnectionState
_E: Final = ConnectionEvent

TRANSITIONS: Final[Mapping[tuple[ConnectionState, ConnectionEvent], ConnectionState]] = MappingProxyType(
    {
        (_S.OPENING, _E.OPENED): _S.IDLE,
        # The bytes in the buffer are not a whole head.
        (_S.IDLE, _E.HEAD_BEGUN): _S.HEAD,
        (_S.HEAD, _E.HEAD_BEGUN): _S.HEAD,
        (_S.HELD, _E.HEAD_BEGUN): _S.HEAD,
        (_S.NEXT, _E.HEAD_BEGUN): _S.HEAD,
        # They are.
        (_S.IDLE, _E.STARTED): _S.STARTING,
        (_S.HEAD, _E.STARTED): _S.STARTING,
        (_S.HELD, _E.STARTED): _S.STARTING,
        (_S.NEXT, _E.STARTED): _S.STARTING,
        # They never will be. A refused head closes the connection, so that no request starts after it.
        (_S.IDLE, _E.REFUSED): _S.EXCHANGE,
        (_S.HEAD, _E.REFUSED): _S.EXCHANGE,
        (_S.HELD, _E.REFUSED): _S.EXCHANGE,
        (_S.NEXT, _E.REFUSED): _S.EXCHANGE,
        (_S.YIELDING, _E.REFUSED): _S.EXCHANGE,
        # An answer is complete.
        (_S.STARTING, _E.ENDED): _S.NEXT,
        (_S.EXCHANGE, _E.ENDED): _S.IDLE,
        # No further request starts now.
        (_S.IDLE, _E.SETTLED): _S.IDLE,
        (_S.HEAD, _E.SETTLED): _S.HEAD,
        (_S.HELD, _E.SETTLED): _S.IDLE,
        (_S.STARTING, _E.SETTLED): _S.EXCHANGE,
        (_S.NEXT, _E.SETTLED): _S.IDLE,
        (_S.CLOSING, _E.SETTLED): _S.CLOSING,
        (_S.CLOSED, _E.SETTLED): _S.CLOSED,
        # Requests wait: for the listener, or for other connections. A connection may end while it waits for its turn.
        (_S.IDLE, _E.HELD): _S.HELD,
        (_S.HEAD, _E.HELD): _S.HELD,
        (_S.HELD, _E.HELD): _S.HELD,
        (_S.NEXT, _E.YIELDED): _S.YIELDING,
        (_S.YIELDING, _E.RESUMED): _S.IDLE,
        (_S.CLOSING, _E.RESUMED): _S.CLOSING,
        (_S.CLOSED, _E.RESUMED): _S.CLOSED,
        # The gateway closes a connection only between exchanges.
        (_S.IDLE, _E.SHUT): _S.CLOSING,
        (_S.HEAD, _E.SHUT): _S.CLOSING,
        (_S.HELD, _E.SHUT): _S.CLOSING,
        (_S.NEXT, _E.SHUT): _S.CLOSING,
        # A client may leave at any time.
        (_S.IDLE, _E.LEFT): _S.CLOSING,
        (_S.HEAD, _E.LEFT): _S.CLOSING,
        (_S.HELD, _E.LEFT): _S.CLOSING,
        (_S.STARTING, _E.LEFT): _S.CLOSING,
        (_S.NEXT, _E.LEFT): _S.CLOSING,
        (_S.YIELDING, _E.LEFT): _S.CLOSING,
        (_S.EXCHANGE, _E.LEFT): _S.CLOSING,
        (_S.CLOSING, _E.LEFT): _S.CLOSING,
        (_S.CLOSING, _E.LOST): _S.CLOSED,
    }
)

_DEFECT: Final = 255


def _by_number() -> bytes:
    """The table by the sum of state and event."""
    table = bytearray([_DEFECT]) * (16 * len(ConnectionState))
    for (state, event), following in TRANSITIONS.items():
        table[state + event] = following
    return bytes(table)


# One lookup of a plain number, instead of a pair of enumeration members that would have to be hashed.
_NEXT: Final = _by_number()


def after(state: int, event: int) -> int:
    """The state that ``event`` leads to from ``state``. Raises RuntimeError where the table has none."""
    following = _NEXT[state + event]
    if following == _DEFECT:
        raise RuntimeError(f"no transition from {ConnectionState(state).name} by {ConnectionEvent(event).name}")
    return following
