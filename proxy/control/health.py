"""Health and metrics endpoints.

``/livez``: this process answers, so there is no reason to restart it. ``/startupz``: it has started. ``/readyz``:
requests can be served now, or 503 with the reasons. ``/metrics``: Prometheus text format 0.0.4.
"""

from __future__ import annotations

from aiohttp import web

from proxy.control.runtime import ControlRuntime
from proxy.observe.exposition import CONTENT_TYPE, render

_NO_STORE = {"Cache-Control": "no-store"}


class Health:
    """The handlers of the endpoints."""

    def __init__(self, runtime: ControlRuntime) -> None:
        self._runtime = runtime

    def routes(self) -> list[web.RouteDef]:
        """The routes of the endpoints."""
        return [
            web.get("/livez", self.alive),
            web.get("/startupz", self.alive),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
        ]

    async def alive(self, _request: web.Request) -> web.Response:
        """Answer ``/livez`` and ``/startupz``."""
        return web.json_response({"status": "ok"}, headers=_NO_STORE)

    async def ready(self, _request: web.Request) -> web.Response:
        """Answer ``/readyz``."""
        reasons = await self._runtime.unready()
        if not reasons:
            return web.json_response({"status": "ready"}, headers=_NO_STORE)
        failed = [{"check": check, "detail": detail} for check, detail in reasons.items()]
        headers = {**_NO_STORE, "Retry-After": "1"}
        return web.json_response({"status": "unready", "reasons": failed}, status=503, headers=headers)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Answer ``/metrics``."""
        return web.Response(body=render(self._runtime.metrics()), headers={**_NO_STORE, "Content-Type": CONTENT_TYPE})
