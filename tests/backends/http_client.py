"""Plain HTTP with httpx and requests, and event streams with httpx-sse and requests-sse, which reconnects by itself.

Each follower of a stream has a name, with which it reports ``event`` for each one, ``dropped`` when the library
announces a retry, and ``ended`` with the error that it raised, None if the stream ended without one.
"""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import httpx  # type: ignore[import-not-found,unused-ignore]
import httpx_sse  # type: ignore[import-not-found,unused-ignore]
import requests  # type: ignore[import-untyped,import-not-found,unused-ignore]
import requests_sse  # type: ignore[import-not-found,unused-ignore]

from tests.backends.line import Line, described, fields, work

SECONDS = 120.0


class Client:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._httpx = httpx.AsyncClient(trust_env=False, timeout=SECONDS)
        self._requests = requests.Session()
        self._requests.trust_env = False
        self._followers: set[asyncio.Task[None]] = set()

    async def do_request(
        self, library: str, method: str, url: str, headers: dict[str, str], content: str | None = None
    ) -> Any:
        """Send a request over a connection that is kept open."""
        data = None if content is None else content.encode()
        if library == "httpx":
            answer = await self._httpx.request(method, url, headers=headers, content=data)
        else:
            answer = await asyncio.to_thread(
                self._requests.request, method, url, headers=headers, data=data, timeout=SECONDS
            )
        return {"status": answer.status_code, "headers": fields(answer.headers), "text": answer.text}

    async def do_follow(self, client: str, library: str, url: str, headers: dict[str, str]) -> None:
        """Follow a stream; return when it has begun, and raise if it does not begin."""
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[None] = loop.create_future()
        if library == "httpx":
            task = asyncio.create_task(self._follow(client, url, headers, begun), name=client)
            self._followers.add(task)
            task.add_done_callback(self._followers.discard)
        else:

            def begin(error: Exception | None) -> None:
                def settle() -> None:
                    if not begun.done():
                        begun.set_exception(error) if error else begun.set_result(None)

                loop.call_soon_threadsafe(settle)

            threading.Thread(
                target=self._follow_in_thread, args=(client, url, headers, begin), name=client, daemon=True
            ).start()
        await begun

    async def do_abandon(self) -> None:
        """Stop following streams, except in threads, which cannot be cancelled."""
        followers = tuple(self._followers)
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)

    async def _follow(self, client: str, url: str, headers: dict[str, str], begun: asyncio.Future[None]) -> None:
        try:
            async with httpx_sse.aconnect_sse(self._httpx, "GET", url, headers=headers) as source:
                source.response.raise_for_status()
                begun.set_result(None)
                async for event in source.aiter_sse():
                    self._line.tell("event", client=client, id=event.id, kind=event.event, data=event.data)
        except Exception as error:  # noqa: BLE001 - the test judges any error that a library raises
            self._over(client, error, None if begun.done() else begun.set_exception)
        else:
            self._over(client, None, None)

    def _follow_in_thread(self, client: str, url: str, headers: dict[str, str], begin: Any) -> None:
        begun = False

        def opened() -> None:
            nonlocal begun
            begun = True
            begin(None)

        source = requests_sse.EventSource(
            url,
            session=self._requests,
            headers=headers,
            timeout=SECONDS,
            reconnection_time=timedelta(milliseconds=10),
            on_open=opened,
            on_error=lambda: self._line.tell("dropped", client=client),
        )
        try:
            with source:
                for event in source:
                    self._line.tell("event", client=client, id=event.last_event_id, kind=event.type, data=event.data)
        except Exception as error:  # noqa: BLE001 - as above
            self._over(client, error, None if begun else begin)

    def _over(self, client: str, error: Exception | None, begin: Any) -> None:
        if error is not None and begin is not None:
            begin(error)
        else:
            self._line.tell("ended", client=client, error=None if error is None else described(error))


if __name__ == "__main__":
    work(Client)
