"""A gateway in forty lines of aiohttp, as one would write it: naive_server.py PORT ORIGIN_PORT TOKENS_FILE."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import ClientSession, web

PORT, ORIGIN_PORT, TOKENS_FILE = sys.argv[1:]
USERS = {f"Bearer {token}": f"u{number}" for number, token in enumerate(Path(TOKENS_FILE).read_text().split())}
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "authorization"}
SESSION = web.AppKey("session", ClientSession)


async def handle(request: web.Request) -> web.Response:
    user = USERS.get(request.headers.get("Authorization", ""))
    if user is None:
        return web.Response(status=401)
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
    headers.append(("X-Auth-User", user))
    async with request.app[SESSION].request(
        request.method,
        f"http://127.0.0.1:{ORIGIN_PORT}{request.raw_path}",
        headers=headers,
        data=request.content if request.can_read_body else None,
        allow_redirects=False,
    ) as answer:
        body = await answer.read()
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        return web.Response(status=answer.status, headers=kept, body=body)


async def session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(auto_decompress=False) as opened:
        app[SESSION] = opened
        yield


app = web.Application()
app.cleanup_ctx.append(session)
app.router.add_route("*", "/{path:.*}", handle)
web.run_app(app, host="127.0.0.1", port=int(PORT), access_log=None, print=None)
