"""A request that waits for its turn is served by the services that are in use when the turn comes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from proxy.control.api.endpoint import routes
from proxy.control.api.operation import Call, DictView, Method, NoBody, NoQuery, Operation
from proxy.control.concurrency import Turns
from proxy.control.middleware import REQUEST_ID
from proxy.control.models import ResponseModel
from proxy.core.model import Actor, ActorKind

USER = Actor(kind=ActorKind.PERSON, id="u", name="u", user_id="u")


async def served_by(call: Call[NoBody, NoQuery]) -> DictView:
    return DictView(members={"services": cast(Any, call.services)})


async def test_a_reload_while_a_request_waits_for_its_turn_applies_to_the_request() -> None:
    turns, runtime = Turns(), cast(Any, SimpleNamespace(services="before the reload"))
    row = Operation(name="x.y", method=Method.GET, path="/x", summary="", run=served_by, answer=ResponseModel)

    async def identify(_request: web.Request, _request_id: str) -> Actor:
        return USER

    (route,) = routes(runtime, [row], identify, turns)
    request = make_mocked_request("GET", "/api/v1/x")
    request[REQUEST_ID] = "1"
    async with AsyncExitStack() as others:
        for _ in range(4):
            await others.enter_async_context(turns.turn("u"))
        waiting = asyncio.create_task(cast(Any, route.handler)(request), name="request")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        runtime.services = "after the reload"
    response = await waiting
    assert response.text == '{"services": "after the reload"}'
