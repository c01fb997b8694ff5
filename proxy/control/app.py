"""The two applications: one for the TCP listener, one for the control socket."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from proxy.control.api import SOCKET_ACTOR, Api
from proxy.control.health import Health
from proxy.control.hosts import only_hosts
from proxy.control.plane import Plane
from proxy.control.problems import as_problems
from proxy.control.requests import BODY_LIMIT


def tcp_app(plane: Plane, hosts: Iterable[str]) -> web.Application:
    """Health and metrics, for whoever reaches the listener under one of `hosts`."""
    app = web.Application(middlewares=[only_hosts(hosts), as_problems], client_max_size=BODY_LIMIT)
    app.add_routes(Health(plane).routes())
    app.on_response_prepare.append(_bare)
    return app


def socket_app(plane: Plane) -> web.Application:
    """Health, metrics and the API, for whoever may open the control socket."""
    app = web.Application(middlewares=[as_problems], client_max_size=BODY_LIMIT)
    app.add_routes(Health(plane).routes())
    app.add_routes(Api(plane, SOCKET_ACTOR).routes())
    app.on_response_prepare.append(_bare)
    return app


async def _bare(_request: web.Request, response: web.StreamResponse) -> None:
    # Versions of Python and of libraries are nobody's business.
    response.headers.pop("Server", None)
    response.headers["X-Content-Type-Options"] = "nosniff"
