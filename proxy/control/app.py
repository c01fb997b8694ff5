"""aiohttp applications of the control plane: one for the TCP listener, one for the control socket.

Both serve the same operations. On TCP a token identifies the caller; on the socket it is an operator, identified by the
operating-system user that connected.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from proxy.control.api.endpoint import Identify, routes
from proxy.control.api.openapi import Specification
from proxy.control.api.operations import OPERATIONS
from proxy.control.authenticate import ApiAuthenticator
from proxy.control.concurrency import Turns
from proxy.control.connections import Connection
from proxy.control.health import Health
from proxy.control.host_check import only_hosts
from proxy.control.middleware import exchanges, finish
from proxy.control.peer import Peers
from proxy.control.problems import Refusal
from proxy.control.refusals import Refusals
from proxy.control.request_parsing import BODY_LIMIT
from proxy.control.runtime import ControlRuntime
from proxy.control.throttle import Throttle
from proxy.core.model import Actor

REFUSED: Final = web.AppKey("refused", Refusals)


def tcp_app(runtime: ControlRuntime, hosts: Iterable[str]) -> web.Application:
    """The application of the TCP listener for the names ``hosts``; the API needs a token."""
    authenticator, turns = ApiAuthenticator(runtime, Throttle(time.monotonic)), Turns()
    refused = Refusals(runtime)
    app = web.Application(
        middlewares=[exchanges(runtime.brand, refused), only_hosts(hosts)], client_max_size=BODY_LIMIT
    )

    async def identify(request: web.Request, request_id: str) -> Actor:
        async with turns.identifying():
            actor = await authenticator.actor(request, request_id)
        # A connection counts as busy only from here on, when its caller is known.
        if isinstance(request.protocol, Connection):
            request.protocol.processing()
        return actor

    app[REFUSED] = refused
    _serve(app, runtime, identify, turns)
    app.on_response_prepare.append(_answering)
    return app


def socket_app(runtime: ControlRuntime) -> web.Application:
    """The application of the control socket, which only operators can open."""
    app = web.Application(middlewares=[exchanges(runtime.brand, _ignored)], client_max_size=BODY_LIMIT)
    _serve(app, runtime, Peers().actor)
    return app


def _serve(app: web.Application, runtime: ControlRuntime, identify: Identify, turns: Turns | None = None) -> None:
    app.add_routes(Health(runtime).routes())
    app.add_routes(routes(runtime, OPERATIONS, identify, turns))
    app.add_routes(Specification(OPERATIONS, runtime.brand).routes())
    app.on_response_prepare.append(finish)


def _ignored(_request: web.BaseRequest, _refusal: Refusal) -> None:
    """Refusals on the control socket are neither counted nor logged: an operator's own mistakes."""


async def _answering(request: web.Request, _response: web.StreamResponse) -> None:
    if isinstance(request.protocol, Connection):
        request.protocol.answering()
