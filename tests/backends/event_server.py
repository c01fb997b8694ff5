"""Channels of messages as event streams, with starlette and sse-starlette: POST publishes lines, GET subscribes.

A stream begins after ``Last-Event-ID``; one that is requested with ``?most=N`` ends after N events, as real streams
may. Reports ``opened`` and ``closed`` for every stream.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse  # type: ignore[import-not-found,unused-ignore]
from starlette.applications import Starlette  # type: ignore[import-not-found,unused-ignore]
from starlette.requests import Request  # type: ignore[import-not-found,unused-ignore]
from starlette.responses import JSONResponse, Response  # type: ignore[import-not-found,unused-ignore]
from starlette.routing import Route  # type: ignore[import-not-found,unused-ignore]

from tests.backends.asgi import Uvicorn
from tests.backends.line import Line, work


class Server:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._channels: defaultdict[str, list[str]] = defaultdict(list)
        self._published = asyncio.Condition()
        self._server: Uvicorn | None = None

    async def do_serve(self) -> int:
        """Start the server and return the port on which it listens."""
        path = "/v1/channels/{id}/messages"
        routes = [Route(path, self._subscribe, methods=["GET"]), Route(path, self._publish, methods=["POST"])]
        self._server = Uvicorn(Starlette(routes=routes))
        return self._server.port

    async def _publish(self, request: Request) -> Response:
        lines = (await request.body()).decode().splitlines()
        async with self._published:
            self._channels[request.path_params["id"]] += lines
            self._published.notify_all()
        return JSONResponse({"published": len(lines), "by": request.headers["x-auth-email"]}, status_code=201)

    async def _subscribe(self, request: Request) -> Response:
        # No pings: another test checks that a silent stream stays open.
        return EventSourceResponse(self._events(request), ping=3600)

    async def _events(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        headers = dict(request.headers)
        token, last = headers.get("x-auth-token-name"), headers.get("last-event-id")
        most = int(request.query_params.get("most", "0"))
        self._line.tell("opened", token=token, last=last, headers=headers)
        channel = self._channels[request.path_params["id"]]
        at, sent = int(last or "0"), 0
        try:
            while not most or sent < most:
                while at < len(channel) and (not most or sent < most):
                    yield {"id": str(at + 1), "event": "news", "data": channel[at], "retry": 10}
                    at, sent = at + 1, sent + 1
                if not most or sent < most:
                    async with self._published:
                        while at == len(channel):
                            await self._published.wait()
        finally:
            self._line.tell("closed", token=token, sent=sent)


if __name__ == "__main__":
    work(Server)
