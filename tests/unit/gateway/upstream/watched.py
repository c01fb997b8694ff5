"""A gateway whose upstream is monitored, as in a worker: names are resolved from a table, servers are checked."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.gateway.upstream.dns import DnsResolver, TableResolver
from proxy.gateway.upstream.monitor import UpstreamWatch
from proxy.gateway.upstream.pool import Server, UpstreamPool
from proxy.observe.logs import get_logger
from proxy.settings.sections.upstreams import Upstream as UpstreamSettings
from tests.unit.gateway.kit import NEVER, Backend, Gateway, Handler


class Watched(Gateway):
    """The kit's gateway with the upstream ``app`` of these settings."""

    def __init__(self, resolver: DnsResolver, **settings: Any) -> None:
        super().__init__(upstream=UpstreamSettings.model_validate(settings))
        self.watch = UpstreamWatch(resolver, get_logger("test"))
        self.watching = True
        self.on_sweep: Callable[[], None] = lambda: None

    @property
    def app(self) -> UpstreamPool:
        (pool,) = self.pipeline.upstreams.pools
        return pool

    @property
    def servers(self) -> tuple[Server, ...]:
        return self.app.servers

    @property
    def healthy(self) -> list[bool]:
        return [server.healthy for server in self.servers]

    def gauges(self, name: str) -> Mapping[tuple[str, ...], float]:
        return self.watch.snapshot().gauges[f"patgate_upstream_server_{name}"]

    async def watch_over(self) -> None:
        while True:
            if self.watching:
                self.watch.sweep(time.monotonic(), self.pipeline.upstreams.pools)
                self.on_sweep()
            await asyncio.sleep(0.005)


@asynccontextmanager
async def watched(
    table: Mapping[str, Sequence[str]] | DnsResolver | None = None, **settings: Any
) -> AsyncIterator[Watched]:
    if table is None:
        table = {}
    resolver = TableResolver(table) if isinstance(table, Mapping) else table
    gateway = Watched(resolver, **settings)
    await gateway.watch.prepare(gateway.pipeline.upstreams.pools, NEVER)
    watching = asyncio.create_task(gateway.watch_over(), name="watch")
    try:
        await gateway.start()
        yield gateway
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await gateway.watch.close()
        await gateway.close()


@asynccontextmanager
async def backend_at(handler: Handler, *address: Any) -> AsyncIterator[Backend]:
    """A backend at ``host`` and ``port``, whose connections run ``handler``."""
    one = Backend(handler)
    await one.start(socket.create_server(address))
    try:
        yield one
    finally:
        await one.close()


def logged(caplog: pytest.LogCaptureFixture, *, level: int = logging.INFO) -> list[str]:
    """The events that were logged about upstreams, in order."""
    return [r.getMessage() for r in caplog.records if r.levelno >= level and r.getMessage().startswith("upstream ")]


def fields(caplog: pytest.LogCaptureFixture, event: str) -> dict[str, Any]:
    """The fields of the last log line of ``event``."""
    found = [record for record in caplog.records if record.getMessage() == event]
    said: dict[str, Any] = vars(found[-1])["patgate_fields"]
    return said
