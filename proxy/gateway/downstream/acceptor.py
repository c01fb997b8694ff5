"""Accepting client connections: the connection limit, the PROXY header of a load balancer, and the TLS handshake.

Rules of this module:
1. No more connections are open than the limit, including those whose header or handshake is not complete; further
   clients wait in the kernel's queue. Room is made by closing the connections that have been idle longest.
2. Where the system refuses a connection (no descriptor, no memory), accepting pauses until a connection closes or until
   the next sweep. It never spins and never stops for good; pauses are counted, and logged once per episode.
3. A connection from a load balancer begins with a PROXY header, which is read to its last byte and no further. Any
   other beginning, or none before the deadline, closes the connection without an answer. From all other peers such a
   header is a malformed request.
4. A connection that misses its deadline is dropped: one time limit holds for the header, and again for the handshake.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Final, Protocol

from proxy.core.ipc.clock import boottime_ns
from proxy.core.networks import is_within
from proxy.gateway.downstream.accepted import AcceptedSocket
from proxy.gateway.downstream.connection_state import ConnectionState
from proxy.gateway.downstream.handover import Handover
from proxy.gateway.downstream.limits import DownstreamLimits
from proxy.gateway.downstream.listener import Other
from proxy.gateway.downstream.proxy_protocol import MAX_HEADER, ProxyHeaderError, parse
from proxy.observe.logs import Logger
from proxy.observe.metrics import ACCEPT_PAUSES, CONNECTIONS_DROPPED
from proxy.observe.snapshot import Labels, Snapshot

_SHUTDOWN_SECONDS: Final = 86_400.0
"""How long a TLS transport tries to end by itself: longer than any client has, because it would cut clients that still
read. The sweep ends it."""

_STREAM: Final = int(socket.SOCK_STREAM)
_UNIX: Final = int(socket.AF_UNIX)
_BATCH: Final = 64
"""Connections that are accepted in one turn of the event loop."""
_IDLE_SECONDS: Final = 1.0
"""How long a connection must have been idle before it is closed for another one: a request may be on its way."""
_ROOM: Final = 64
"""One part in 64 of the limit is closed at once, so that a full worker does not search for idle connections all the
time."""
_FRUITLESS_NS: Final = 100_000_000
"""How long to wait before the next search for idle connections after one that found none: its cost grows with the
number of connections, and clients that come and go at the limit would make a worker do little else."""
_JUDGED: Final = 4096
"""Addresses of which it is remembered whether they begin with a PROXY header."""
_EPISODE_NS: Final = 30_000_000_000
"""A pause for the same cause is logged again after this time without one."""

_NEXT: Final = frozenset(
    # accept(2): errors of the connection, which is gone, not of the socket.
    (
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    )
)


class Accepting(Protocol):
    """What an acceptor needs of the listener that it accepts for (``downstream.listener`` has the meanings)."""

    arriving: int
    others: set[Other]
    waiting: set[Callable[[], None]]

    @property
    def open(self) -> int: ...  # noqa: D102

    @property
    def limits(self) -> DownstreamLimits: ...  # noqa: D102

    def connection(self, host: str) -> Any: ...  # noqa: D102

    def idle_longest(self, most: int, *, seconds: float) -> Sequence[Any]: ...  # noqa: D102

    def left(self) -> None: ...  # noqa: D102


class Pause(StrEnum):
    """Why accepting pauses: label cause of ``patgate_accept_pauses_total``."""

    LIMIT = "limit"
    RESOURCES = "resources"


class Drop(StrEnum):
    """Why a connection without a request was closed: label cause of ``patgate_connections_dropped_total``."""

    PROXY_HEADER = "proxy_header"
    HANDSHAKE = "handshake"
    ROOM = "room"


_SAID: Final = {
    Pause.LIMIT: "the connection limit is reached: further clients wait",
    Pause.RESOURCES: "the system gives no more connections: further clients wait",
}


class AcceptCounters:
    """Counts of one worker's acceptors, kept when a reload replaces these."""

    def __init__(self) -> None:
        self._pauses: Counter[Labels] = Counter()
        self._drops: Counter[Labels] = Counter()

    def paused(self, listener: str, cause: Pause) -> None:
        """Count a pause."""
        self._pauses[listener, cause.value] += 1

    def dropped(self, listener: str, cause: Drop) -> None:
        """Count a connection that was closed."""
        self._drops[listener, cause.value] += 1

    def snapshot(self) -> Snapshot:
        """All counts, by listener and cause."""
        return Snapshot(counters={ACCEPT_PAUSES.name: dict(self._pauses), CONNECTIONS_DROPPED.name: dict(self._drops)})


class Acceptor:
    """Accepts connections for ``listener`` from the listening ``sockets``, at most ``limit`` of them open at a time.

    Peers in ``introduced_by`` must begin with a PROXY header; ``context`` is for TLS. Closing the acceptor closes the
    sockets.
    """

    def __init__(
        self,
        listener: Accepting,
        sockets: Sequence[socket.socket],
        *,
        name: str,
        limit: int,
        context: ssl.SSLContext | None,
        introduced_by: Sequence[IPv4Network | IPv6Network],
        tally: AcceptCounters,
        log: Logger,
    ) -> None:
        self._listener = listener
        self._sockets = tuple(sockets)
        self._name = name
        self._limit = limit
        self._introduced_by = tuple(introduced_by)
        self._tls: dict[str, Any] = {}
        if context is not None:
            self._tls = {
                "ssl": context,
                "ssl_handshake_timeout": listener.limits.handshake_ns / 1e9,
                "ssl_shutdown_timeout": _SHUTDOWN_SECONDS,
            }
        self._tally = tally
        self._log = log
        self._reading = False
        self._introductions: set[_Introduction] = set()
        self._connecting: set[Handover] = set()
        self._judged: dict[str, bool] = {}
        self._fruitless_until = 0
        self._last: dict[Pause, int] = {}

    def start(self) -> None:
        """Begin to accept."""
        for bound in self._sockets:
            bound.setblocking(False)
        self._read(True)

    def close(self) -> None:
        """Accept no more. Connections whose header or handshake is not complete continue."""
        self._listener.waiting.discard(self._resume)
        self._read(False)
        for bound in self._sockets:
            bound.close()

    def abort(self) -> None:
        """Accept no more, and close the connections whose header or handshake is not complete."""
        self.close()
        for introduction in list(self._introductions):
            introduction.end()
        for handover in self._connecting:
            handover.cancel()

    def dropped(self, cause: Drop) -> None:
        """Count a connection that was closed without a request."""
        self._tally.dropped(self._name, cause)

    def connect(self, sock: socket.socket, host: str) -> None:
        """Give an accepted socket to the listener; the client's address is ``host``, if it has one."""
        self._listener.arriving += 1
        connection = self._listener.connection(host)

        def ended(handover: Handover, error: OSError | None) -> None:
            self._connecting.discard(handover)
            if error is not None and self._tls:
                # The client left, or its TLS handshake failed. It gets no other answer.
                self.dropped(Drop.HANDSHAKE)
            if connection.state == ConnectionState.OPENING:
                self._listener.arriving -= 1
                self._listener.left()

        run = asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock, **self._tls)
        handover = Handover(run, ended)
        self._connecting.add(handover)
        handover.advance()

    def introduced(self, introduction: _Introduction) -> None:
        """Forget an introduction that has ended, with a header or without."""
        self._introductions.discard(introduction)
        self._listener.others.discard(introduction)

    def left(self) -> None:
        """Tell the listener that an arriving connection was closed."""
        self._listener.left()

    def _accept(self, bound: socket.socket, family: int, proto: int) -> None:
        listener = self._listener
        for accepted in range(_BATCH):
            if listener.open >= self._limit:
                if not accepted:
                    self._make_room()
                    self._pause(Pause.LIMIT, None)
                # Otherwise it is not known yet whether a client waits.
                return
            try:
                # The half of ``accept`` without its socket object.
                fd, address = bound._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _NEXT:
                    continue
                self._make_room()
                self._pause(Pause.RESOURCES, error)
                return
            # The event loop sets it non-blocking.
            sock = AcceptedSocket(family, _STREAM, proto, fd)
            # At a unix socket a peer has no address; that of a socket which is bound is a path.
            host = address[0] if family != _UNIX else ""
            if self._introduced_by and self._is_introduced(host):
                sock.setblocking(False)
                deadline = boottime_ns() + listener.limits.handshake_ns
                introduction = _Introduction(self, sock, host, deadline)
                self._introductions.add(introduction)
                listener.others.add(introduction)
                introduction.begin()
            else:
                self.connect(sock, host)

    def _is_introduced(self, host: str) -> bool:
        """Whether the peer at this address must begin with a PROXY header."""
        judged = self._judged
        if (known := judged.get(host)) is None:
            if len(judged) >= _JUDGED:
                judged.clear()
            known = judged[host] = is_within(ip_address(host), self._introduced_by)
        return known

    def _make_room(self) -> None:
        """Close the connections that have been idle longest."""
        now = boottime_ns()
        if now < self._fruitless_until:
            return
        idle = self._listener.idle_longest(max(1, self._limit // _ROOM), seconds=_IDLE_SECONDS)
        if not idle:
            self._fruitless_until = now + _FRUITLESS_NS
        for connection in idle:
            connection.leave()
            self.dropped(Drop.ROOM)

    def _pause(self, cause: Pause, error: OSError | None) -> None:
        self._read(False)
        self._listener.waiting.add(self._resume)
        self._tally.paused(self._name, cause)
        now = boottime_ns()
        last = self._last.get(cause)
        self._last[cause] = now
        if last is None or now - last > _EPISODE_NS:
            why = {} if error is None else {"error": error}
            self._log.warning(_SAID[cause], listener=self._name, connections=self._limit, **why)

    def _resume(self) -> None:
        self._listener.waiting.discard(self._resume)
        self._read(True)

    def _read(self, wanted: bool) -> None:
        if wanted == self._reading:
            return
        self._reading = wanted
        loop = asyncio.get_running_loop()
        for bound in self._sockets:
            if wanted:
                loop.add_reader(bound, self._accept, bound, int(bound.family), bound.proto)
            else:
                loop.remove_reader(bound)


class _Introduction:
    """A connection from a load balancer whose PROXY header is being read."""

    __slots__ = ("_acceptor", "_held", "_host", "_reading", "_sock", "deadline")

    def __init__(self, acceptor: Acceptor, sock: socket.socket, host: str, deadline: int) -> None:
        self._acceptor = acceptor
        self._sock = sock
        self._host = host
        self._held = b""
        self._reading = False
        self.deadline = deadline

    def begin(self) -> None:
        """Read at once, because the header mostly arrives with the connection, and then when more bytes arrive."""
        if not self._read():
            self._reading = True
            asyncio.get_running_loop().add_reader(self._sock, self._read)

    def end(self) -> None:
        """Close the connection."""
        self._stop()
        self._sock.close()
        self._acceptor.introduced(self)
        self._acceptor.left()

    def late(self) -> None:
        """Close the connection, because the deadline has passed."""
        self.end()
        self._acceptor.dropped(Drop.PROXY_HEADER)

    def _read(self) -> bool:
        """Read the bytes that belong to the header; returns whether reading is over, with a header or without."""
        sock = self._sock
        try:
            new = sock.recv(MAX_HEADER - len(self._held), socket.MSG_PEEK)
            header = parse(self._held + new) if new else None
            # Rule 2 of ``proxy_protocol``: while the header is not complete, every byte so far belongs to it.
            wanted = len(new) if header is None else header.length - len(self._held)
            self._held += sock.recv(wanted)
        except (BlockingIOError, InterruptedError):
            return False
        except (OSError, ProxyHeaderError):
            self.end()
            self._acceptor.dropped(Drop.PROXY_HEADER)
            return True
        if not new:
            # Load balancers check a port like this. Only a header that breaks off counts as dropped.
            self.end()
            if self._held:
                self._acceptor.dropped(Drop.PROXY_HEADER)
            return True
        if header is None:
            return False
        self._stop()
        self._acceptor.introduced(self)
        self._acceptor.connect(sock, header.source or self._host)
        return True

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._sock)
