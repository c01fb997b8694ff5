"""Active health checks: each worker checks each server independently, and sends requests only to healthy ones.

Rules of this module:
1. A check uses a separate connection, with the same address, TLS and client certificate as requests, and closes it.
2. A check carries no data of any request: no identity header, no token, no cookie. It has the headers that the upstream
   sets, because its backend may require a credential of every request.
3. Each server has one check at a time, for at most ``timeout`` and ``_LINGER_SECONDS``, and ``_MOST_BYTES``.
4. A server counts as healthy until ``fall`` checks in a row have failed, and as ill until ``rise`` checks in a row have
   passed. When all are ill, requests are sent to none.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Final, cast

from proxy.gateway.http1.grammar import HEAD_END, STATUS_LINE, head_lines
from proxy.gateway.upstream.pool import Server, UpstreamPool
from proxy.observe import defects
from proxy.observe.logs import Logger
from proxy.settings.sections.upstreams import UpstreamHealth

_MOST_BYTES: Final = 64 * 1024
_LINGER_SECONDS: Final = 1.0
"""How long the rest of a response is read once its status is known: a server may log an abort as an error."""
_SOON_SECONDS: Final = 1.0
"""Time between checks of a server that has not been judged yet, where ``interval`` is longer."""
_JITTER: Final = 0.1
_PASSED: Final = "passed"
_FAILED: Final = "failed"


def explain(error: OSError) -> str:
    """Why a connection failed, in the system's words only, which contain nothing that a peer has sent."""
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    return os.strerror(error.errno) if error.errno else "the connection failed"


class Probe(asyncio.Protocol):
    """Sends one request and reads the response: ``status`` is its status, None if it is not HTTP/1.x."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.status: asyncio.Future[int | None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._read = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Parse the status; read and discard the rest."""
        self._read += len(data)
        if not self.status.done():
            self._head += data
            self._parse()
        if self._read > _MOST_BYTES:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Finish without a status unless one was read."""
        self._settle(None)
        if not self.gone.done():
            self.gone.set_result(None)

    def abort(self) -> None:
        """Abort the connection, if there is one."""
        if self._transport is not None:
            self._transport.abort()

    def _parse(self) -> None:
        while (end := self._head.find(HEAD_END)) >= 0:
            lines = head_lines(self._head[:end])
            matched = None if lines is None else STATUS_LINE.fullmatch(lines[0])
            if matched is None:
                self._settle(None)
                return
            status = int(matched[2])
            if status >= 200:
                self._settle(status)
                return
            self._head = self._head[end + len(HEAD_END) :]

    def _settle(self, status: int | None) -> None:
        if not self.status.done():
            self.status.set_result(status)


class _Checked:
    """The check state of one server."""

    __slots__ = ("due", "failed", "passed", "task", "trusted")

    def __init__(self, due: float) -> None:
        self.due = due
        self.passed = 0
        self.failed = 0
        self.trusted = False
        self.task: asyncio.Task[None] | None = None


class HealthChecks:
    """Checks the servers of upstreams that have a ``health`` section, and marks them healthy or ill."""

    def __init__(self, log: Logger) -> None:
        self._upstreams: tuple[UpstreamPool, ...] = ()
        self._servers: dict[Server, _Checked] = {}
        self._log = log
        self._counts: dict[tuple[str, ...], float] = {}

    @property
    def counts(self) -> Mapping[tuple[str, ...], float]:
        """Checks made, by upstream, server and outcome."""
        return self._counts

    def follow(self, upstreams: Iterable[UpstreamPool]) -> None:
        """Check the servers of these upstreams from now on. An ill server stays ill when a reload replaces its pool."""
        # Not by server alone: another upstream may check the same server differently.
        ill = {
            (upstream.name, server.name, server.host)
            for upstream in self._upstreams
            for server in upstream.servers
            if not server.healthy
        }
        self._upstreams = tuple(upstream for upstream in upstreams if upstream.settings.health is not None)
        for upstream in self._upstreams if ill else ():
            for server in upstream.servers:
                if server not in self._servers and (upstream.name, server.name, server.host) in ill:
                    upstream.mark(server, healthy=False)

    def sweep(self, now: float) -> None:
        """Start every check that is due; ``now`` in monotonic seconds."""
        for upstream in self._upstreams:
            health = upstream.settings.health
            assert health is not None
            for server in upstream.servers:
                checked = self._servers.get(server)
                if checked is None:
                    # Workers start at the same time; their checks must not stay synchronised.
                    checked = _Checked(now + random.random() * min(health.interval, _SOON_SECONDS))  # noqa: S311
                    self._servers[server] = checked
                if checked.task is None and now >= checked.due:
                    task = asyncio.create_task(self._check(upstream, server, health, checked), name="health check")
                    checked.task = task
                    task.add_done_callback(defects.noted)
        self._forget()

    async def close(self) -> None:
        """Cancel every check."""
        tasks = [checked.task for checked in self._servers.values() if checked.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self) -> None:
        """Drop servers that no upstream has any more; a check that is still running ends by itself."""
        known = sum(len(upstream.servers) for upstream in self._upstreams)
        if len(self._servers) > known:
            present = {server for upstream in self._upstreams for server in upstream.servers}
            for server in [each for each in self._servers if each not in present]:
                checked = self._servers[server]
                if checked.task is None:
                    del self._servers[server]

    async def _check(self, upstream: UpstreamPool, server: Server, health: UpstreamHealth, checked: _Checked) -> None:
        begun = time.monotonic()
        probe: Probe | None = None
        status: int | None = None
        try:
            try:
                async with asyncio.timeout(health.timeout):
                    request = _request(upstream, server, health)
                    probe = await server.dial(lambda: Probe(request))
                    status = await probe.status
                why = _judge(status, health)
            except TimeoutError:
                why = "no answer in time" if probe is not None else "no connection in time"
            except OSError as error:
                why = explain(error)
            self._note(upstream, server, health, checked, why)
            if probe is not None and status is not None:
                await asyncio.wait((probe.gone,), timeout=_LINGER_SECONDS)
        finally:
            if probe is not None:
                probe.abort()
            interval = health.interval
            if not checked.trusted:
                interval = min(interval, _SOON_SECONDS)
            checked.due = begun + interval * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
            checked.task = None

    def _note(
        self, upstream: UpstreamPool, server: Server, health: UpstreamHealth, checked: _Checked, why: str | None
    ) -> None:
        """Count a check, which failed for ``why`` or passed (None), and mark the server if its state changes."""
        key = (upstream.name, server.name, _PASSED if why is None else _FAILED)
        self._counts[key] = self._counts.get(key, 0) + 1
        if why is None:
            checked.passed, checked.failed = checked.passed + 1, 0
            checked.trusted = True
        else:
            checked.passed, checked.failed = 0, checked.failed + 1
        about = {"upstream": upstream.name, "server": server.name, "address": server.host}
        if server.healthy and checked.failed >= health.fall:
            checked.trusted = True
            upstream.mark(server, healthy=False)
            self._log.warning("upstream server is unhealthy", **about, why=why, usable=len(upstream.usable))
        elif not server.healthy and checked.passed >= health.rise:
            upstream.mark(server, healthy=True)
            self._log.info("upstream server is healthy again", **about, usable=len(upstream.usable))


def _request(upstream: UpstreamPool, server: Server, health: UpstreamHealth) -> bytes:
    host = health.host or server.address.authority
    head = f"GET {health.path} HTTP/1.1\r\nHost: {host}".encode("ascii")
    fields, edits = b"\r\nUser-Agent: patgate-health\r\nAccept: */*\r\n", upstream.edits
    if edits is not None:
        fields = edits.kept(fields) + edits.lines
    return head + fields + b"Connection: close\r\n\r\n"


def _judge(status: int | None, health: UpstreamHealth) -> str | None:
    """Why a response fails the check; None if it passes."""
    if status is None:
        return "no valid answer"
    return None if any(status in statuses for statuses in health.expect) else f"answered {status}"
