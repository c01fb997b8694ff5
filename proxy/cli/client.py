"""Client of the control API over the unix socket in the data directory.

A store is changed only through the control API. If a gateway runs, its authority serves the API; otherwise this process
takes the data directory's lock, runs the same API on a private socket, and connects to itself.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

from proxy.app import offline_control
from proxy.authority.sockets import peer_uid
from proxy.core.errors import AuthorityUnavailable, DataDirBusy, Origin, PatgateError
from proxy.settings.model import Settings
from proxy.settings.store_urls import is_shared
from proxy.store.address import sqlite_path, store_url
from proxy.supervisor import datadir

T = TypeVar("T")
Json = dict[str, Any]

API: Final = "/api/v1"
ANSWER_SECONDS: Final = 60.0
"""How long the control API may send nothing during a request."""
START_SECONDS: Final = 15.0
"""How long a command waits for a gateway that holds the lock but does not answer yet."""
_RETRY_SECONDS: Final = 0.05


class ControlRefused(PatgateError):
    """The control API refused a request; ``problem`` is its problem+json document (RFC 9457)."""

    origin = Origin.CALLER

    def __init__(self, status: int, problem: Json) -> None:
        self.status = status
        self.problem = problem
        sentence = str(problem.get("detail") or problem.get("title") or f"The control API answered {status}")
        super().__init__(sentence if sentence.endswith(".") else f"{sentence}.")


class _Request(HTTPConnection):
    """One request and its response over a unix socket.

    Uses the standard library's client in a thread, because loading a larger one takes longer than a whole command.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket, if it is served by this user or root."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
        if peer_uid(self.sock) not in (os.geteuid(), 0):
            raise PermissionError(f"{self._path} is served by another user")

    async def run(self, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Return status and body of the response. Raises ``OSError`` and ``HTTPException``."""
        with closing(self):
            try:
                return await asyncio.to_thread(self._run, method, target, body)
            except asyncio.CancelledError:
                # A thread cannot be cancelled, and the event loop waits for it when it closes.
                if self.sock is not None:
                    with suppress(OSError):
                        self.sock.shutdown(socket.SHUT_RDWR)
                raise

    def _run(self, method: str, target: str, body: bytes | None) -> tuple[int, bytes]:
        self.request(method, target, body, {"Content-Type": "application/json"} if body is not None else {})
        answer = self.getresponse()
        return answer.status, answer.read()


class Control:
    """The control API of one store: paths below ``/api/v1``, JSON both ways. Methods raise ``ControlRefused``."""

    def __init__(self, path: Path) -> None:
        self._socket = path

    async def get(self, path: str, query: Mapping[str, str | None] | None = None) -> Json:
        """Send a GET request."""
        return await self._request("GET", path, query=query)

    async def post(self, path: str, body: Mapping[str, object] | None = None) -> Json:
        """Send a POST request."""
        return await self._request("POST", path, body=body or {})

    async def put(self, path: str, body: Mapping[str, object]) -> Json:
        """Send a PUT request."""
        return await self._request("PUT", path, body=body)

    async def patch(self, path: str, body: Mapping[str, object]) -> Json:
        """Send a PATCH request."""
        return await self._request("PATCH", path, body=body)

    async def delete(self, path: str, query: Mapping[str, str | None] | None = None) -> Json:
        """Send a DELETE request."""
        return await self._request("DELETE", path, query=query)

    async def every(self, path: str, query: Mapping[str, str | None] | None = None) -> list[Json]:
        """All items of a list, requested page by page."""
        items: list[Json] = []
        cursor: str | None = None
        while True:
            page = await self.get(path, {**(query or {}), "cursor": cursor})
            items.extend(page["items"])
            cursor = page.get("next_cursor")
            if not cursor:
                return items

    async def healthy(self, probe: str) -> bool:
        """Whether a health endpoint (``/livez``, ``/readyz``) answers 200."""
        try:
            status, _ = await _Request(self._socket).run("GET", probe)
        except (HTTPException, OSError):
            return False
        return status == 200

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        query: Mapping[str, str | None] | None = None,
    ) -> Json:
        parameters = urlencode({name: value for name, value in (query or {}).items() if value is not None})
        target = f"{API}{path}" + (f"?{parameters}" if parameters else "")
        try:
            status, answer = await _Request(self._socket).run(
                method, target, None if body is None else json.dumps(body).encode()
            )
        except (HTTPException, OSError) as error:
            raise AuthorityUnavailable(
                f"The gateway does not answer on {self._socket}; is it starting or stopping?"
            ) from error
        document = _document(answer)
        if status >= 400:
            raise ControlRefused(status, document)
        return document


def _document(answer: bytes) -> Json:
    try:
        document = json.loads(answer) if answer else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {"items": document}


def segment(text: str) -> str:
    """A name escaped as one path segment."""
    return quote(text, safe="")


@asynccontextmanager
async def control(settings: Settings, *, makes_store: bool = False) -> AsyncIterator[Control]:
    """The control API of a store, whether a gateway runs or not. Raises ``PatgateError`` when it cannot be reached.

    Without ``makes_store`` the store must exist: in a wrong directory a command must not create an empty one and answer
    from it.
    """
    if not makes_store and not is_shared(settings.store):
        datadir.require_store(settings.data_dir, sqlite_path(store_url(settings.store, settings.data_dir)))
    datadir.prepare(settings.data_dir)
    async with AsyncExitStack() as stack:
        held = await _lock_or_server(settings.data_dir)
        if held is None:
            path = settings.data_dir / datadir.CONTROL_SOCKET
        else:
            stack.enter_context(held)
            path = await stack.enter_async_context(offline_control(settings))
        yield Control(path)


async def _lock_or_server(data_dir: Path) -> datadir.DataDirLock | None:
    """The lock if it is free, ``None`` when its holder answers on the control socket."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_SECONDS
    while True:
        held = datadir.try_lock(data_dir, "a command")
        if held is not None:
            return held
        if await Control(data_dir / datadir.CONTROL_SOCKET).healthy("/livez"):
            return None
        if loop.time() >= deadline:
            raise DataDirBusy(f"The data directory {data_dir} is in use, but no process answers on its control socket.")
        await asyncio.sleep(_RETRY_SECONDS)  # another command runs, or a gateway is starting


def call(settings: Settings, requests: Callable[[Control], Awaitable[T]], *, makes_store: bool = False) -> T:
    """Run ``requests`` with a client of the control API; ``makes_store``: create the store if there is none."""

    async def run() -> T:
        async with control(settings, makes_store=makes_store) as client:
            return await requests(client)

    return asyncio.run(run())
