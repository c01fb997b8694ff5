"""MCP clients of the reference package, over streamable HTTP.

Each has a name, with which it reports ``answered`` (status and challenge of every HTTP response), ``said`` (what its
transport logs), ``message`` (a notification), ``progress``, ``failed`` (a call), ``change`` and ``lost`` (of a
subscription).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import httpx2  # type: ignore[import-not-found,unused-ignore]
from mcp import Client  # type: ignore[import-not-found,unused-ignore]
from mcp.client.streamable_http import streamable_http_client  # type: ignore[import-not-found,unused-ignore]

from tests.backends.line import Line, described, work

NAME: ContextVar[str] = ContextVar("NAME", default="")


class Said(logging.Handler):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.tell("said", client=NAME.get(), text=record.getMessage())


class Session:
    """One client and the task in which it lives, because its context must be left in the task that entered it."""

    def __init__(self, line: Line, name: str) -> None:
        self._line = line
        self._name = name
        self._leave = asyncio.Event()
        self._opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self.client: Any = None

    async def open(self, url: str, headers: dict[str, str], mode: str) -> Any:
        self._task = asyncio.create_task(self._live(url, headers, mode), name=self._name)
        return await self._opened

    async def close(self) -> None:
        assert self._task is not None
        self._leave.set()
        await self._task

    async def abandon(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _live(self, url: str, headers: dict[str, str], mode: str) -> None:
        NAME.set(self._name)
        try:
            async with (
                httpx2.AsyncClient(
                    headers=headers,
                    trust_env=False,
                    timeout=httpx2.Timeout(20, read=60),
                    event_hooks={"response": [self._answered]},
                ) as http,
                Client(
                    streamable_http_client(url, http_client=http),
                    mode=mode,
                    read_timeout_seconds=40,
                    message_handler=self._message,
                    cache=None,
                ) as client,
            ):
                self.client = client
                self._opened.set_result({"protocol": client.protocol_version, "server": client.server_info.name})
                await self._leave.wait()
        except Exception as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _answered(self, response: Any) -> None:
        self._line.tell(
            "answered",
            client=self._name,
            method=response.request.method,
            status=response.status_code,
            challenge=response.headers.get("www-authenticate"),
        )

    async def _message(self, message: Any) -> None:
        self._line.tell("message", client=self._name, method=getattr(message, "method", type(message).__name__))


class Clients:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._sessions: dict[str, Session] = {}
        self._subscriptions: set[asyncio.Task[None]] = set()
        log = logging.getLogger("mcp.client.streamable_http")
        log.setLevel(logging.DEBUG)
        log.addHandler(Said(line))

    async def do_open(self, client: str, url: str, headers: dict[str, str], mode: str) -> Any:
        self._sessions[client] = Session(self._line, client)
        return await self._sessions[client].open(url, headers, mode)

    async def do_close(self, client: str) -> None:
        await self._sessions.pop(client).close()

    async def do_abandon(self) -> None:
        """Cancel the task of every client without an orderly close."""
        sessions, self._sessions = self._sessions, {}
        await asyncio.gather(*(session.abandon() for session in sessions.values()))

    async def do_tools(self, client: str) -> list[str]:
        return [tool.name for tool in (await self._client(client).list_tools()).tools]

    async def do_read(self, client: str, uri: str) -> str:
        return str((await self._client(client).read_resource(uri)).contents[0].text)

    async def do_call(self, client: str, tool: str, arguments: dict[str, Any]) -> Any:
        """The structured result of a tool call."""

        async def progress(progress: float, total: float | None, message: str | None) -> None:
            self._line.tell("progress", client=client, tool=tool, progress=progress, total=total, message=message)

        try:
            result = await self._client(client).call_tool(tool, arguments, progress_callback=progress)
        except Exception as error:
            self._line.tell("failed", client=client, tool=tool, **described(error))
            raise
        assert not result.is_error, result.content
        return result.structured_content.get("result", result.structured_content)

    async def do_listen(self, client: str) -> None:
        """Subscribe to changes of the tools, as clients since 2026-07-28 do; return once the server has agreed."""
        agreed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._listen(client, agreed.set_result), name=f"{client} listens")
        self._subscriptions.add(task)
        task.add_done_callback(self._subscriptions.discard)
        await asyncio.wait([task, agreed], return_when=asyncio.FIRST_COMPLETED)
        if not agreed.done():
            await task

    async def _listen(self, client: str, agreed: Callable[[None], Any]) -> None:
        done = False
        try:
            async with self._client(client).listen(tools_list_changed=True) as subscription:
                agreed(None)
                done = True
                async for event in subscription:
                    self._line.tell("change", client=client, kind=type(event).__name__)
        except Exception as error:
            if not done:
                raise
            self._line.tell("lost", client=client, error=described(error)["kind"])

    def _client(self, name: str) -> Any:
        return self._sessions[name].client


if __name__ == "__main__":
    work(Clients)
