"""The client of the control API over the unix socket in the data directory.

There is one way to change a store: the control API. Where a gateway runs, its authority serves it; where none runs,
this process takes the data directory's lock, runs the same API on a private socket, and asks itself.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import aiohttp

from proxy.app import offline_control
from proxy.core.errors import AuthorityUnavailable, DataDirBusy, Origin, PatgateError
from proxy.settings.model import Settings
from proxy.supervisor import datadir

T = TypeVar("T")
Json = dict[str, Any]

API: Final = "http://localhost/api/v1"
ANSWER_SECONDS: Final = 60.0
START_SECONDS: Final = 15.0
"""How long a command waits for a gateway that holds the lock but does not answer yet."""
_LOOK_AGAIN_SECONDS: Final = 0.05


class ControlRefused(PatgateError):
    """The control API refused; `problem` is its problem+json document (RFC 9457)."""

    origin = Origin.CALLER

    def __init__(self, status: int, problem: Json) -> None:
        self.status = status
        self.problem = problem
        sentence = str(problem.get("detail") or problem.get("title") or f"The control API answered {status}")
        super().__init__(sentence if sentence.endswith(".") else f"{sentence}.")


class Control:
    """The control API of one store: paths below `/api/v1`, JSON both ways. Methods raise `ControlRefused`."""

    def __init__(self, session: aiohttp.ClientSession, socket: Path) -> None:
        self._session = session
        self._socket = socket

    async def get(self, path: str, query: Mapping[str, str | None] | None = None) -> Json:
        """Read one thing."""
        return await self._ask("GET", path, query=query)

    async def post(self, path: str, body: Mapping[str, object] | None = None) -> Json:
        """Make something, or do something to it."""
        return await self._ask("POST", path, body=body or {})

    async def put(self, path: str, body: Mapping[str, object]) -> Json:
        """Set something."""
        return await self._ask("PUT", path, body=body)

    async def delete(self, path: str, query: Mapping[str, str | None] | None = None) -> Json:
        """Remove something."""
        return await self._ask("DELETE", path, query=query)

    async def every(self, path: str, query: Mapping[str, str | None] | None = None) -> list[Json]:
        """All items of a list, page after page."""
        items: list[Json] = []
        cursor: str | None = None
        while True:
            page = await self.get(path, {**(query or {}), "cursor": cursor})
            items.extend(page["items"])
            cursor = page.get("next_cursor")
            if not cursor:
                return items

    async def healthy(self, probe: str) -> bool:
        """Whether a health endpoint (`/livez`, `/readyz`) answers 200."""
        try:
            async with self._session.get(f"http://localhost{probe}") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str | None] | None = None,
    ) -> Json:
        parameters = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            async with self._session.request(method, f"{API}{path}", json=body, params=parameters) as answer:
                text = await answer.text()
                document = _document(text)
                if answer.status >= 400:
                    raise ControlRefused(answer.status, document)
                return document
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AuthorityUnavailable(
                f"The gateway does not answer on {self._socket}; is it starting or stopping?"
            ) from error


def _document(text: str) -> Json:
    try:
        document = json.loads(text) if text else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {"items": document}


def segment(text: str) -> str:
    """A name as one segment of a path."""
    return quote(text, safe="")


@asynccontextmanager
async def over(socket: Path) -> AsyncIterator[Control]:
    """The client over one unix socket."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)), timeout=timeout) as session:
        yield Control(session, socket)


@asynccontextmanager
async def control(settings: Settings) -> AsyncIterator[Control]:
    """The control API of a store, whether a gateway runs or not. Raises `PatgateError` when neither way is open."""
    datadir.prepare(settings.data_dir)
    async with AsyncExitStack() as stack:
        held = await _lock_or_server(settings.data_dir)
        if held is None:
            socket = settings.data_dir / datadir.CONTROL_SOCKET
        else:
            stack.enter_context(held)
            socket = await stack.enter_async_context(offline_control(settings))
        yield await stack.enter_async_context(over(socket))


async def _lock_or_server(data_dir: Path) -> datadir.DataDirLock | None:
    """The lock when nobody has it, `None` when its holder answers on the control socket."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_SECONDS
    while True:
        held = datadir.try_lock(data_dir, "a command")
        if held is not None:
            return held
        async with over(data_dir / datadir.CONTROL_SOCKET) as client:
            if await client.healthy("/livez"):
                return None
        if loop.time() >= deadline:
            raise DataDirBusy(f"The data directory {data_dir} is in use, but nobody answers on its control socket.")
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)  # another command is at work, or a gateway is starting


def ask(settings: Settings, question: Callable[[Control], Awaitable[T]]) -> T:
    """Run one conversation with the control API to its end."""

    async def talk() -> T:
        async with control(settings) as client:
            return await question(client)

    return asyncio.run(talk())
