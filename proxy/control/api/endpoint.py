"""API endpoints: builds a route for each operation, and processes every request in this order.

1. The caller is authenticated (``identify``).
2. The path's parameters are validated, an ``Idempotency-Key`` where nothing is created is refused, then query and body
are validated together, with all errors in one response.
3. The handler waits for its turn and runs, for at most ``Operation.seconds`` together. A timeout undoes what is not
   committed.
4. The response is written. No response may be cached, because many have data that only the caller may see.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Final

from aiohttp import web

from proxy.control.api.operation import PARAMETERS, Call, Method, Operation
from proxy.control.concurrency import Turns
from proxy.control.middleware import ACTOR, NAME, REQUEST_ID
from proxy.control.problems import ProblemKind, RequestRefused
from proxy.control.request_parsing import idempotency_key, read
from proxy.control.runtime import ControlRuntime
from proxy.core.errors import AuthorityUnavailable, NotFound
from proxy.core.model import Actor
from proxy.services.idempotency import IdempotencyKey
from proxy.services.views import Replayable

ROOT: Final = "/api/v1"
REPLAYED: Final = "Idempotency-Replayed"
_KEYLESS: Final = ProblemKind(
    status=400, reason="idempotency_key", title="Only requests that create something take an Idempotency-Key"
)

Identify = Callable[[web.Request, str], Awaitable[Actor]]
"""Returns the actor that sent the request with this id. Raises RequestRefused."""


def routes(
    runtime: ControlRuntime, table: Iterable[Operation[Any, Any]], identify: Identify, turns: Turns | None = None
) -> list[web.RouteDef]:
    """A route for every row, served from `runtime`; without `turns` each at once."""
    return [
        web.route(
            row.method.value,
            ROOT + row.path,
            _handler(runtime, row, identify, turns),
            **({"allow_head": True} if row.method is Method.GET else {}),
        )
        for row in table
    ]


def _handler(
    runtime: ControlRuntime, row: Operation[Any, Any], identify: Identify, turns: Turns | None
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        request[NAME] = row.name
        actor = request[ACTOR] = await identify(request, request[REQUEST_ID])
        path = _parameters(request)
        key = idempotency_key(request)
        if key and not row.creates:
            raise RequestRefused(_KEYLESS)
        body, query = await read(request, row.body, row.query)
        idempotent = _idempotency_key(request, key, body.model_dump_json()) if key else None
        try:
            turn = nullcontext() if turns is None else turns.turn(actor.user_id or actor.id)
            async with asyncio.timeout(row.seconds), turn:
                # The services are taken when the turn comes: a reload while the request waited applies to it.
                call = Call(
                    services=runtime.services,
                    actor=actor,
                    body=body,
                    query=query,
                    path=path,
                    idempotency_key=idempotent,
                )
                view = await row.run(call)
        except TimeoutError:
            raise AuthorityUnavailable("this took too long and was cancelled") from None
        replayed = isinstance(view, Replayable) and view.replayed
        return answer(view.as_dict(), row.status, {REPLAYED: "true"} if replayed else {})

    return handle


def answer(document: dict[str, object], status: int, headers: Mapping[str, str]) -> web.Response:
    """The response of a successful operation."""
    return web.json_response(document, status=status, headers={"Cache-Control": "no-store", **headers})


def _parameters(request: web.Request) -> dict[str, str]:
    values = dict(request.match_info)
    for name, value in values.items():
        known = PARAMETERS[name]
        if len(value) > known.longest or re.search(known.pattern, value) is None or not value.isprintable():
            raise NotFound(known.missing)
    return values


def _idempotency_key(request: web.Request, key: str, body: str) -> IdempotencyKey:
    """The client's key, with the SHA-256 of method, path and normalised body, which identifies the request."""
    text = "\n".join((request.method, request.path, body))
    return IdempotencyKey(value=key, request_hash=hashlib.sha256(text.encode()).hexdigest())
