"""Connection pools: the servers of an upstream, and the keep-alive connections to them.

Rules of this module:
1. A connection serves one exchange at a time. It returns to its pool only after both messages ended cleanly; in any
   doubt it is closed.
2. Bytes that arrive while no exchange is open close the connection; they are never given to the next exchange.
3. Back pressure works both ways: while one side cannot write, the other side is not read.
4. This module resolves no names and checks no health: ``dns`` and ``health_check`` do that, apart from requests, and
   call ``resolved`` and ``mark``.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar, cast

from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.body import BodyReader, CloseBody
from proxy.settings.addresses import ServerAddress as Address
from proxy.settings.compile import header_edits
from proxy.settings.sections.upstreams import Upstream as UpstreamSettings

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_MOST_FAILURES: Final = 6
WRITE_HIGH_WATER = 256 * 1024
"""Bytes that may wait in a transport before the other side is paused."""
_LAST_READ: Final = 256 * 1024


class Receiver(Protocol):
    """Processes what arrives on upstream connections: the relay phase."""

    def received(self, connection: UpstreamConnection, data: bytes) -> None:
        """Bytes of the response to ``connection.exchange``."""

    def ended(self, connection: UpstreamConnection, *, clean: bool) -> None:
        """The connection was lost while ``connection.exchange`` is open; ``clean`` if the backend closed it."""

    def writable(self, connection: UpstreamConnection, *, now: bool) -> None:
        """The backend can take more of the request body (``now``), or cannot for a while."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a server of an upstream."""

    __slots__ = ("body", "buffer", "eof", "exchange", "fresh", "idle_since", "interim", "keep", "server", "transport")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.buffer = b""
        self.body: BodyReader | None = None
        self.keep = True
        self.fresh = True
        self.eof = False
        self.interim = 0
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports have the interface and not the base class.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        """Pass response bytes to the receiver; without an exchange, close (rule 2)."""
        if self.exchange is None:
            self.close()
            return
        self.server.receiver.received(self, data)

    def eof_received(self) -> bool:
        """End a response that is delimited by the end of the connection."""
        self.eof = True
        if self.exchange is not None and isinstance(self.body, CloseBody):
            # The response is complete, even if part of the request has not been written.
            self.server.receiver.ended(self, clean=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the pool, and report the loss if an exchange is open."""
        transport, self.transport = self.transport, None
        x = self.exchange
        if exc is not None and x is not None and x.body is not None and self.body is None and transport is not None:
            # A backend that rejects the rest of a body responds and closes, and the failed write is noticed before the
            # read. Its response is still in the socket.
            data = _unread(transport)
            if data:
                self.server.receiver.received(self, data)
        self.server.forget(self)
        if self.exchange is not None:
            self.server.receiver.ended(self, clean=exc is None and self.eof)

    def pause_writing(self) -> None:
        """Report that the backend cannot take more of the request."""
        if self.exchange is not None:
            self.server.receiver.writable(self, now=False)

    def resume_writing(self) -> None:
        """Report that the backend can take more of the request."""
        if self.exchange is not None:
            self.server.receiver.writable(self, now=True)

    def read_more(self, more: bool) -> bool:
        """Read the backend, or (False) leave its bytes in the kernel; False where the connection is gone."""
        transport = self.transport
        if transport is None:
            return False
        if more:
            transport.resume_reading()
        else:
            transport.pause_reading()
        return True

    def close(self) -> None:
        """Abort the connection, with all data in flight."""
        self.exchange = None
        self.body = None
        if self.transport is not None:
            self.transport.abort()

    def finish(self) -> None:
        """Close the connection after all written data has been sent."""
        self.exchange = None
        self.body = None
        if self.transport is not None:
            self.transport.close()


class Reachability(Protocol):
    """Is called when connections to a server begin to fail, and when they succeed again."""

    def unreachable(self, server: Server, error: OSError) -> None:
        """The first connection after a good one has failed."""

    def reachable(self, server: Server) -> None:
        """The first connection after a failed one has succeeded."""


class Server:
    """One server of an upstream, with its idle connections.

    ``address`` is the configured one and gives the ``name``; ``host`` is the IP address to connect to, empty for a unix
    socket. A host name with several addresses has one server for each, all with the same ``name``.
    """

    def __init__(
        self, address: Address, host: str, settings: UpstreamSettings, tls: ssl.SSLContext | None, receiver: Receiver
    ) -> None:
        self.name = str(address)
        self.address = address
        self.host = host
        self.receiver = receiver
        self.watcher: Reachability | None = None
        self.healthy = True
        self.idle: deque[UpstreamConnection] = deque()
        self.active = 0
        self.connecting = 0
        """Requests that wait for a connection, counted from when this server was chosen for them."""
        self._settings = settings
        self._max_idle = settings.max_idle
        self._tls = tls if address.scheme == "https" else None
        self._tls_name = None if self._tls is None else settings.tls.name or address.host
        self.host_line = b"\r\nHost: " + address.authority.encode("ascii")
        self._failures = 0
        self._down_until = 0.0
        self._now = time.monotonic()

    async def connect(self) -> UpstreamConnection:
        """Open a connection. Raises OSError (refused, TLS failure), including TimeoutError.

        A server that fails is ``down`` for a second, then twice as long after each further failure, up to 32 seconds.
        """
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                connection = await self.dial(lambda: UpstreamConnection(self))
        except OSError as error:
            # Attempts that ran at the same time, or while the server was down, count as one failure.
            if begun >= self._down_until:
                self._failures = min(self._failures + 1, _MOST_FAILURES)
                self._down_until = time.monotonic() + 2.0 ** (self._failures - 1)
                if self._failures == 1 and self.watcher is not None:
                    self.watcher.unreachable(self, error)
            raise
        if self._failures and self.watcher is not None:
            self.watcher.reachable(self)
        self._failures = 0
        self._down_until = 0.0
        return connection

    def down(self, now: float) -> bool:
        """Whether to prefer other servers (``now`` in monotonic seconds).

        The last attempt failed, and either its waiting time has not passed or another attempt is under way.
        """
        return self._down_until > now or (self._failures > 0 and self.connecting > 0)

    async def dial(self, factory: Callable[[], _P]) -> _P:
        """Open a connection to this server with any protocol, over TLS if it is https. Raises OSError."""
        loop = asyncio.get_running_loop()
        address = self.address
        if address.scheme == "unix":
            _, protocol = await loop.create_unix_connection(factory, address.path)
        else:
            _, protocol = await loop.create_connection(
                factory, self.host, address.port, ssl=self._tls, server_hostname=self._tls_name
            )
        return protocol

    def take_idle(self) -> UpstreamConnection | None:
        """The idle connection that was used last, and so most likely still works; None if there is none."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            transport = connection.transport
            if transport is not None and not transport.is_closing():
                return connection
        return None

    def release(self, connection: UpstreamConnection) -> None:
        """Return a connection to the pool after its exchange ended cleanly."""
        connection.exchange = None
        connection.body = None
        connection.fresh = False
        if len(self.idle) >= self._max_idle:
            connection.close()
            return
        # The time of the last sweep is exact enough, since only sweeps compare idle times.
        connection.idle_since = self._now
        self.idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that ended while idle."""
        if connection.exchange is None:
            try:
                self.idle.remove(connection)
            except ValueError:
                return

    def sweep(self, now: float) -> None:
        """Close connections that have been idle for longer than the idle timeout."""
        self._now = now
        oldest = now - self._settings.idle_timeout
        while self.idle and self.idle[0].idle_since < oldest:
            self.idle.popleft().close()

    def revive(self) -> None:
        """Reset the failure count, because a health check has passed."""
        self._failures = 0
        self._down_until = 0.0

    def retire(self) -> None:
        """Close all idle connections, and keep none from now on."""
        self._max_idle = 0
        self.close()

    def close(self) -> None:
        """Close all idle connections."""
        while self.idle:
            self.idle.pop().close()


class UpstreamPool:
    """The servers of one upstream. The next exchange goes to the one with the fewest open exchanges."""

    def __init__(self, name: str, settings: UpstreamSettings, receiver: Receiver) -> None:
        self.name = name
        self.settings = settings
        self.response_ns = int(settings.response_timeout * 1e9)
        self.preserve_host = settings.preserve_host
        self.edits = header_edits(settings)
        """The headers that requests to this upstream get and lose; None if there are none."""
        self.servers: tuple[Server, ...] = ()
        """All known servers; those of host names change with their addresses."""
        self.usable: tuple[Server, ...] = ()
        """The servers that health checks have not marked ill."""
        self._receiver = receiver
        self._watcher: Reachability | None = None
        self._tls = _client_context(settings) if any(each.scheme == "https" for each in settings.servers) else None
        self._by_place: list[tuple[Server, ...]] = []
        for address in settings.servers:
            self._by_place.append(() if address.named else (self._server(address, address.host),))
        self._turn = 0
        self._arrange()

    def choose(self) -> Server | None:
        """The server for the next exchange; None if none is usable."""
        servers = self.usable
        if len(servers) == 1:
            return servers[0]
        if not servers:
            return None
        now = time.monotonic()
        # If all are down, any of them may have recovered.
        servers = tuple(server for server in servers if not server.down(now)) or servers
        # Ties rotate, so that idle servers share the load.
        self._turn = turn = (self._turn + 1) % len(servers)
        return min(servers[turn:] + servers[:turn], key=_load)

    def watch(self, watcher: Reachability) -> None:
        """Report to ``watcher`` when a server becomes unreachable, and when it is reachable again."""
        self._watcher = watcher
        for server in self.servers:
            server.watcher = watcher

    def resolved(self, place: int, hosts: Sequence[str]) -> None:
        """Set the IP addresses, without duplicates, of the name in ``settings.servers[place]``.

        A server whose address is no longer listed gets no more exchanges; each connection closes after its present one.
        """
        held = {server.host: server for server in self._by_place[place]}
        address = self.settings.servers[place]
        self._by_place[place] = tuple([held[host] if host in held else self._server(address, host) for host in hosts])
        for host, server in held.items():
            if host not in hosts:
                server.retire()
        self._arrange()

    def mark(self, server: Server, *, healthy: bool) -> None:
        """Record the result of health checks: an ill server gets no exchanges, and its idle connections are closed."""
        server.healthy = healthy
        if healthy:
            server.revive()
        else:
            server.close()
        self._arrange()

    def another(self, tried: Sequence[Server]) -> Server | None:
        """The best usable server that is not among ``tried``; one that is down only if no other is left."""
        now = time.monotonic()
        left = [server for server in self.usable if server not in tried]
        return min(left, key=lambda server: (server.down(now), _load(server)), default=None)

    def sweep(self, now: float) -> None:
        """Close connections that have been idle for too long; ``now`` in monotonic seconds."""
        for server in self.servers:
            server.sweep(now)

    def close(self) -> None:
        """Close all idle connections."""
        for server in self.servers:
            server.close()

    def retire(self) -> None:
        """Close each connection after its present exchange, because no new exchange will come."""
        for server in self.servers:
            server.retire()

    def _server(self, address: Address, host: str) -> Server:
        server = Server(address, host, self.settings, self._tls, self._receiver)
        server.watcher = self._watcher
        return server

    def _arrange(self) -> None:
        self.servers = tuple([server for servers in self._by_place for server in servers])
        self.usable = tuple([server for server in self.servers if server.healthy])


def _unread(transport: asyncio.Transport) -> bytes:
    """The unread bytes of a lost connection, at most ``_LAST_READ``; empty under TLS."""
    bound = transport.get_extra_info("socket")
    if bound is None or bound.fileno() < 0 or transport.get_extra_info("ssl_object") is not None:
        return b""
    try:
        return os.read(bound.fileno(), _LAST_READ)
    except OSError:
        return b""


def _load(server: Server) -> int:
    # Pending connections count, so that a server that is slow to accept does not look idle.
    return server.active + server.connecting


def _client_context(settings: UpstreamSettings) -> ssl.SSLContext:
    tls = settings.tls
    context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        # An empty password, so that an encrypted key is an error instead of a prompt on the terminal.
        context.load_cert_chain(str(tls.certificate), None if tls.key is None else str(tls.key), password="")
    return context
