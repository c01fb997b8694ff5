"""Middleware of the control plane: request ids, error responses, and the headers of every response.

Rules of this module:
1. Every request gets an id from us, even if it sent one: ``X-Request-Id``, and ``decision`` in problems, log and audit
   log.
2. Every error response is built here, from the exception; a defect is logged, and the response has no details of it.
3. ``refused`` is called for each refusal (``refusals``).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.control.problems import DEFECT, Refusal, problem, refusal_of
from proxy.core.model import Actor
from proxy.observe import defects
from proxy.observe.logs import get_logger

REQUEST_ID: Final = web.RequestKey("request_id", str)
NAME: Final = web.RequestKey("operation", str)
ACTOR: Final = web.RequestKey("actor", Actor)
"""The caller, once it is authenticated."""
ID_HEADER: Final = "X-Request-Id"

_log = get_logger("control")

Refused = Callable[[web.BaseRequest, Refusal], None]
"""Called for every refusal."""


def exchanges(realm: str, refused: Refused) -> Middleware:
    """The outermost middleware: request ids, problems, and a call of ``refused`` for each problem."""

    @web.middleware
    async def exchange(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = request[REQUEST_ID] = secrets.token_hex(16)
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            refusal = refusal_of(error) or DEFECT
        except Exception as error:  # noqa: BLE001 - any exception becomes a problem; a defect is logged
            known = refusal_of(error)
            if known is None:
                operation = request.get(NAME, "-")
                defects.report("a request of the control API failed", error, decision=request_id, operation=operation)
            refusal = known or DEFECT
        refused(request, refusal)
        return problem(refusal, realm=realm, decision=request_id)

    return exchange


async def finish(request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers of every response; an aiohttp signal, called before the head is written."""
    # It would disclose the versions of Python and aiohttp.
    response.headers.pop("Server", None)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    request_id = request.get(REQUEST_ID)
    if request_id is not None:
        response.headers[ID_HEADER] = request_id
