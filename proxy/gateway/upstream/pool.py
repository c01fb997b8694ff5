"""Upstreams: their servers, the pooled connections to them, and what arrives on those.

Rules of this module:
1. A connection serves one exchange at a time. It returns to its pool only after both messages ended cleanly; with any
   doubt it is closed.
2. Bytes that arrive while no exchange is open close the connection; they are never given to the next exchange.
3. Back pressure goes both ways: what one side cannot take, the other side is not read for.
4. Nothing here asks for the address of a name or for a server's health: ``resolve`` and ``health`` do, apart from
   requests, and tell an ``Upstream`` what they have found.
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
from proxy.settings.model import Upstream as UpstreamSettings

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_MOST_FAILURES: Final = 6
WRITE_HIGH_WATER = 256 * 1024
"""Bytes that may wait in a transport before the other side is paused."""
_LAST_READ: Final = 256 * 1024


class Receiver(Protocol):
    """Whoever takes what arrives on upstream connections: the relay phase."""

    def received(self, connection: UpstreamConnection, data: bytes) -> None:
        """Bytes of the response to ``connection.exchange``."""

    def ended(self, connection: UpstreamConnection, *, clean: bool) -> None:
        """The connection is gone while ``connection.exchange`` is open; ``clean`` if the backend ended it by itself."""

    def writable(self, connection: UpstreamConnection, *, now: bool) -> None:
        """The backend takes more of the request's body, or (False) no more for a while."""


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
        # uvloop's transports have the interface and not the base class.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self.close()
            return
        self.server.receiver.received(self, data)

    def eof_received(self) -> bool:
        self.eof = True
        if self.exchange is not None and isinstance(self.body, CloseBody):
            # The answer is whole, whatever of the request is still to be written.
            self.server.receiver.ended(self, clean=True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        transport, self.transport = self.transport, None
        x = self.exchange
        if exc is not None and x is not None and x.body is not None and self.body is None and transport is not None:
            # A backend that does not want the rest of a body answers and closes, and the write that fails for it comes
            # before the read. What it has said lies in the socket.
            data = _unread(transport)
            if data:
                self.server.receiver.received(self, data)
        self.server.forget(self)
        if self.exchange is not None:
            self.server.receiver.ended(self, clean=exc is None and self.eof)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.server.receiver.writable(self, now=False)

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.server.receiver.writable(self, now=True)

    def close(self) -> None:
        """Give the connection up, with whatever is in flight on it."""
        self.exchange = None
        self.body = None
        if self.transport is not None:
            self.transport.abort()

    def finish(self) -> None:
        """End the connection after what has been written to it."""
        self.exchange = None
        self.body = None
        if self.transport is not None:
            self.transport.close()


class Reachability(Protocol):
    """Whoever wants to know that connections to a server begin to fail, and that they succeed again."""

    def unreachable(self, server: Server, error: OSError) -> None:
        """The first connection after a good one has failed."""

    def reachable(self, server: Server) -> None:
        """The first connection after a failed one has succeeded."""


class Server:
    """One place that serves an upstream, with its idle connections.

    ``address`` is what was configured and gives the ``name``; ``host`` is the IP address to connect to, empty for a
    unix socket. A name that has several addresses is as many servers, which share their ``name``.
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
        """Open a connection. Raises OSError (refused, TLS failure) and TimeoutError, which is one.

        A server that fails is ``down`` for a second, twice as long after each further failure, half a minute at most.
        """
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                connection = await self.dial(lambda: UpstreamConnection(self))
        except OSError as error:
            # What was under way together, or tried for want of another, is one failure: a busy second is no bad minute.
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
        """Whether another server is better (``now`` in monotonic seconds): the last connection has failed, and so
        lately that none is tried, or one is on trial."""
        return self._down_until > now or (self._failures > 0 and self.connecting > 0)

    async def dial(self, factory: Callable[[], _P]) -> _P:
        """A new connection to this server, over TLS where it is https, for whatever purpose. Raises OSError."""
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
        """The idle connection used last, which is the one most likely to live."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            transport = connection.transport
            if transport is not None and not transport.is_closing():
                return connection
        return None

    def release(self, connection: UpstreamConnection) -> None:
        """Take a connection back whose exchange ended cleanly."""
        connection.exchange = None
        connection.body = None
        connection.fresh = False
        if len(self.idle) >= self._max_idle:
            connection.close()
            return
        # As of the last sweep: idle times are compared in sweeps only.
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
        """Forget that connections failed: a later one succeeded."""
        self._failures = 0
        self._down_until = 0.0

    def retire(self) -> None:
        """Keep no connection from now on."""
        self._max_idle = 0
        self.close()

    def close(self) -> None:
        """Close all idle connections."""
        while self.idle:
            self.idle.pop().close()


class UpstreamPool:
    """A named group of servers that answer the same requests. The one with the fewest exchanges open is next."""

    def __init__(self, name: str, settings: UpstreamSettings, receiver: Receiver) -> None:
        self.name = name
        self.settings = settings
        self.response_ns = int(settings.response_timeout * 1e9)
        self.preserve_host = settings.preserve_host
        self.servers: tuple[Server, ...] = ()
        """All that are known: those of names come and go with their addresses."""
        self.usable: tuple[Server, ...] = ()
        """Those that no health check has found ill."""
        self._receiver = receiver
        self._watcher: Reachability | None = None
        self._tls = _client_context(settings) if any(each.scheme == "https" for each in settings.servers) else None
        self._by_place: list[tuple[Server, ...]] = []
        for address in settings.servers:
            self._by_place.append(() if address.named else (self._server(address, address.host),))
        self._turn = 0
        self._arrange()

    def choose(self) -> Server | None:
        """The server for the next exchange; None where none is usable."""
        servers = self.usable
        if len(servers) == 1:
            return servers[0]
        if not servers:
            return None
        now = time.monotonic()
        # When all are down, any may have recovered.
        servers = tuple(server for server in servers if not server.down(now)) or servers
        # Ties go round, so that an idle group shares its load.
        self._turn = turn = (self._turn + 1) % len(servers)
        return min(servers[turn:] + servers[:turn], key=_load)

    def watch(self, watcher: Reachability) -> None:
        """Tell ``watcher`` of servers that cannot be reached, and that can again."""
        self._watcher = watcher
        for server in self.servers:
            server.watcher = watcher

    def resolved(self, place: int, hosts: Sequence[str]) -> None:
        """The name in ``settings.servers[place]`` has these IP addresses now, each of them once.

        A server whose address is gone gets no more exchanges; what is open on it ends, and its connections with it.
        """
        held = {server.host: server for server in self._by_place[place]}
        address = self.settings.servers[place]
        self._by_place[place] = tuple([held[host] if host in held else self._server(address, host) for host in hosts])
        for host, server in held.items():
            if host not in hosts:
                server.retire()
        self._arrange()

    def mark(self, server: Server, *, healthy: bool) -> None:
        """What health checks found: an ill server gets no exchanges, and loses its idle connections."""
        server.healthy = healthy
        if healthy:
            server.revive()
        else:
            server.close()
        self._arrange()

    def another(self, tried: Sequence[Server]) -> Server | None:
        """The best usable server that is not among ``tried``: one that is down only after those that are not."""
        now = time.monotonic()
        left = [server for server in self.usable if server not in tried]
        return min(left, key=lambda server: (server.down(now), _load(server)), default=None)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long; ``now`` in monotonic seconds."""
        for server in self.servers:
            server.sweep(now)

    def close(self) -> None:
        """Close all idle connections."""
        for server in self.servers:
            server.close()

    def retire(self) -> None:
        """No new exchange will come: keep no connection after the exchange that it carries."""
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
    """What has come on a connection that is lost and was not read, at most ``_LAST_READ`` bytes; nothing under TLS."""
    bound = transport.get_extra_info("socket")
    if bound is None or bound.fileno() < 0 or transport.get_extra_info("ssl_object") is not None:
        return b""
    try:
        return os.read(bound.fileno(), _LAST_READ)
    except OSError:
        return b""


def _load(server: Server) -> int:
    # A server that takes long for a connection must not pass for one that has nothing to do.
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
        # An empty password, so that an encrypted key is an error and not a question on the terminal.
        context.load_cert_chain(str(tls.certificate), None if tls.key is None else str(tls.key), password="")
    return context
