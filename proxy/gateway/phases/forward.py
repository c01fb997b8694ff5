"""The forward phase: takes a connection to the upstream and sends the request on it, in one write.

A request on an idle connection that turns out to be closed is retried once, on a new connection, if it has no body and
its method is idempotent (RFC 9110 section 9.2.2): the backend closed the connection while the request was on its way,
and has not answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from proxy.core.reasons import Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.body import encode_chunks
from proxy.gateway.upstream.pool import Server, UpstreamConnection
from proxy.observe import defects

_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))


class Forwarder:
    """Sends requests to upstreams. ``fail`` is called when no connection can be made."""

    def __init__(self, *, fail: Callable[[Exchange, Reason], None]) -> None:
        self._fail = fail
        self._connecting: set[asyncio.Task[None]] = set()

    def forward(self, x: Exchange) -> None:
        """Send the head of ``x``, and the part of its body that has arrived, on an idle connection or a new one."""
        upstream = x.upstream
        assert upstream is not None
        server = upstream.choose()
        if server is None:
            # No server name is resolved yet, or health checks have failed for every server.
            self._fail(x, Reason.UPSTREAM_UNHEALTHY if upstream.servers else Reason.UPSTREAM_REFUSED)
            return
        # A connection that becomes a tunnel is never shared.
        connection = None if x.websocket else server.take_idle()
        if connection is None:
            self._connect(x, server)
        else:
            self._send(x, connection)

    def send_body(self, x: Exchange, pieces: list[bytes]) -> None:
        """Send more of the request body; until there is a connection, keep it for the first write."""
        connection = x.upstream_connection
        if connection is None:
            if x.pending_body is None:
                x.pending_body = pieces
            else:
                x.pending_body.extend(pieces)
            return
        if connection.transport is not None:
            data = encode_chunks(pieces, last=x.body_done) if x.chunked else b"".join(pieces)
            if data:
                connection.transport.write(data)

    def may_retry(self, x: Exchange, connection: UpstreamConnection) -> bool:
        """Whether ``x`` may be sent once more, after ``connection`` was lost before any response."""
        return (
            not connection.fresh
            and not connection.interim
            and not x.retried
            and not x.response_started
            and x.bytes_in == 0
            and x.body is None
            and x.method in _IDEMPOTENT
        )

    def retry(self, x: Exchange, server: Server) -> None:
        """Send ``x`` again, on a new connection: to ``server``, unless it has become unusable meanwhile."""
        x.retried = True
        x.upstream_connection = None
        server.active -= 1
        upstream = x.upstream
        if upstream is not None and server not in upstream.usable:
            server = upstream.choose() or server
        self._connect(x, server)

    async def close(self) -> None:
        """Cancel connection attempts."""
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _send(self, x: Exchange, connection: UpstreamConnection) -> None:
        connection.exchange = x
        x.upstream_connection = connection
        x.server = server = connection.server
        server.active += 1
        transport = connection.transport
        if transport is None:
            self._fail(x, Reason.UPSTREAM_RESET)
            return
        pieces = x.pending_body
        head = x.upstream_head
        if x.upstream is not None and not x.upstream.preserve_host:
            head = head.replace(b"\r\nHost: " + x.host, server.host_line, 1)
        if x.client is not None and x.client.paused:
            x.client.read_more(True)
        if pieces is None and x.body is None:
            transport.write(head)
            return
        pieces = pieces or []
        x.pending_body = None
        if x.chunked:
            transport.write(head + encode_chunks(pieces, last=x.body_done))
        else:
            transport.write(b"".join((head, *pieces)))

    def _connect(self, x: Exchange, server: Server) -> None:
        server.connecting += 1
        task = asyncio.create_task(self._connect_and_send(x, server), name="upstream connect")
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        task.add_done_callback(defects.noted)

    async def _connect_and_send(self, x: Exchange, server: Server) -> None:
        """Connect to ``server`` or, since nothing has been sent, to any other that accepts, and send ``x``."""
        tried: list[Server] = []
        connection: UpstreamConnection | None = None
        reason = Reason.UPSTREAM_REFUSED
        while connection is None:
            try:
                connection = await server.connect()
            except TimeoutError:
                reason = Reason.UPSTREAM_CONNECT_TIMEOUT
            except OSError:
                reason = Reason.UPSTREAM_REFUSED
            finally:
                server.connecting -= 1
            if connection is not None:
                break
            tried.append(server)
            x.server = server
            if x.client is None or x.upstream is None:
                return
            alternative = x.upstream.another(tried)
            if alternative is None:
                self._fail(x, reason)
                return
            server = alternative
            server.connecting += 1
        if x.client is None:
            # The client disconnected meanwhile; the unused connection goes to the pool.
            server.release(connection)
        else:
            self._send(x, connection)
