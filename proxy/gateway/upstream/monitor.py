"""Monitors the upstreams of a worker, apart from requests: resolves names, checks servers, logs changes once."""

from __future__ import annotations

import time
from collections.abc import Sequence

from proxy.gateway.upstream.dns import DnsResolver, Lookups
from proxy.gateway.upstream.health_check import HealthChecks, explain
from proxy.gateway.upstream.pool import Server, UpstreamPool
from proxy.observe.logs import Logger
from proxy.observe.metrics import UPSTREAM_ADDRESSES, UPSTREAM_CHECKS, UPSTREAM_UP
from proxy.observe.snapshot import Snapshot


class UpstreamWatch:
    """Monitors the upstreams that it follows, driven by the worker's sweep. Constructing it does no I/O."""

    def __init__(self, resolver: DnsResolver, log: Logger) -> None:
        self._upstreams: tuple[UpstreamPool, ...] = ()
        self._prepared: tuple[UpstreamPool, ...] = ()
        self._lookups = Lookups(resolver, log)
        self._checks = HealthChecks(log)
        self._log = log

    def follow(self, upstreams: Sequence[UpstreamPool]) -> None:
        """Monitor these, and those being prepared, from now on. The state of known names and servers is kept."""
        followed = (*upstreams, *[each for each in self._prepared if each not in upstreams])
        if self._upstreams == followed:
            return
        self._upstreams = followed
        for upstream in followed:
            upstream.watch(self)
        self._lookups.follow(followed)
        self._checks.follow(followed)

    async def prepare(self, upstreams: Sequence[UpstreamPool], seconds: float) -> None:
        """Resolve the names in these upstreams before they get requests, waiting at most ``seconds``.

        Requests to an upstream without any address get 502.
        """
        self._prepared = tuple(upstreams)
        try:
            self.follow(self._upstreams)
            await self._lookups.answered(seconds)
        finally:
            # They have their addresses now; a reload that is aborted never uses them.
            self._prepared = ()

    def sweep(self, now: float, upstreams: Sequence[UpstreamPool]) -> None:
        """Start the lookups and checks that are due for ``upstreams`` (all in use); ``now`` in monotonic seconds."""
        self.follow(upstreams)
        self._lookups.sweep(now)
        self._checks.sweep(now)

    async def close(self) -> None:
        """Cancel all lookups and checks."""
        await self._lookups.close()
        await self._checks.close()

    def unreachable(self, server: Server, error: OSError) -> None:
        """Log that connections to ``server`` begin to fail."""
        self._log.warning("upstream server is unreachable", server=server.name, address=server.host, why=explain(error))

    def reachable(self, server: Server) -> None:
        """Log that connections to ``server`` succeed again."""
        self._log.info("upstream server is reachable again", server=server.name, address=server.host)

    def snapshot(self) -> Snapshot:
        """The state of every configured server, as this worker sees it."""
        now = time.monotonic()
        up: dict[tuple[str, ...], float] = {}
        addresses: dict[tuple[str, ...], float] = {}
        for upstream in self._upstreams:
            for address in upstream.settings.servers:
                up.setdefault((upstream.name, str(address)), 0)
                addresses.setdefault((upstream.name, str(address)), 0)
            for server in upstream.servers:
                key = (upstream.name, server.name)
                addresses[key] += 1
                if server.healthy and not server.down(now):
                    up[key] = 1
        return Snapshot(
            counters={UPSTREAM_CHECKS.name: self._checks.counts},
            gauges={UPSTREAM_UP.name: up, UPSTREAM_ADDRESSES.name: addresses},
        )
