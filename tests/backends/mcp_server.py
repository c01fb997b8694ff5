"""An MCP server over streamable HTTP at ``/mcp``, written with the reference package as its documentation says.

Reports ``request`` and ``ended`` for every HTTP request, with the identity headers that came.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from mcp.server.mcpserver import Context, MCPServer  # type: ignore[import-not-found,unused-ignore]
from mcp.server.mcpserver.resources import TextResource  # type: ignore[import-not-found,unused-ignore]

from tests.backends.asgi import App, Receive, Scope, Send, Uvicorn
from tests.backends.line import Line, work


async def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


async def whoami(ctx: Context) -> dict[str, str]:
    """The caller, by the headers that the gateway has set; and whether a credential came through."""
    headers = ctx.headers or {}
    return {name: value for name, value in headers.items() if name.startswith("x-auth-") or "authorization" in name}


async def count(to: int, ctx: Context) -> int:
    """Count, and report each step."""
    for step in range(1, to + 1):
        await ctx.report_progress(step, to, f"step {step}")
    return to


async def ponder(ctx: Context) -> str:
    """Report that it has begun, and never end."""
    await ctx.report_progress(1, None, "pondering")
    await asyncio.Event().wait()
    return "never"


async def learn(ctx: Context) -> str:
    """Notify subscribers that the tools have changed."""
    await ctx.session.send_tool_list_changed()
    await ctx.notify_tools_changed()
    return "learnt"


class Server:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._server: Uvicorn | None = None

    async def do_serve(self) -> int:
        """Start the server and return the port on which it listens."""
        mcp = MCPServer("notes", log_level="WARNING")
        for tool in (add, whoami, count, ponder, learn):
            mcp.add_tool(tool)
        mcp.add_resource(TextResource(uri="note://first", name="first", text="buy milk"))
        self._server = Uvicorn(self._told(mcp.streamable_http_app()))
        return self._server.port

    def _told(self, inner: App) -> App:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            facts = {
                "method": scope["method"],
                "token": headers.get("x-auth-token-name"),
                "session": "mcp-session-id" in headers,
            }
            self._line.tell("request", headers=headers, **facts)
            status = 0

            async def noted(message: MutableMapping[str, Any]) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await inner(scope, receive, noted)
            finally:
                self._line.tell("ended", status=status, **facts)

        return app


if __name__ == "__main__":
    work(Server)
