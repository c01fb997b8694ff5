"""Callers on the control socket: the operating system's user that the kernel reports (SO_PEERCRED, unix(7)).

Rules of this module:
1. The user is the effective one of the process that connected, at that time. Nothing that a client sends about itself
   counts: with sudo it is the target user, and SUDO_USER is only a claim.
2. The user id identifies the caller and is always shown. In a container it is the id in patgate's own user namespace,
   and may have no name; a user outside this namespace has the kernel's overflow id (65534).
3. The name is looked up in a thread, because a directory service may be slow, for at most ``NAME_SECONDS``; without an
   answer there is no name. It is cached for ``KEPT_SECONDS``.
"""

from __future__ import annotations

import asyncio
import pwd
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from aiohttp import web

from proxy.core.errors import AuthorityUnavailable
from proxy.core.model import Actor, ActorKind

NAME_SECONDS: Final = 1.0
KEPT_SECONDS: Final = 300.0
_MOST: Final = 64
_LENGTH: Final = 64
_CREDENTIALS: Final = struct.Struct("iII")
"""``struct ucred``: process, user, group."""
_NOBODY: Final = 2**32 - 1
"""The user id that the kernel reports when it has none, as for a TCP connection."""
_UNKNOWN: Final = "the system does not report the user of the control socket"


class Peers:
    """Finds the actor of a request on the control socket. ``name_of`` raises KeyError for a user id without a name."""

    def __init__(self, name_of: Callable[[int], str] = lambda uid: pwd.getpwuid(uid).pw_name) -> None:
        self._name_of = name_of
        self._names: dict[int, tuple[str, float]] = {}

    async def actor(self, request: web.Request, request_id: str) -> Actor:
        """The actor that sent ``request``. Raises AuthorityUnavailable when the kernel reports no user."""
        uid = user_of(request)
        name = await self._name(uid)
        return Actor(
            kind=ActorKind.SYSTEM,
            id=f"uid:{uid}",
            name=f"{name} (uid {uid})" if name else f"uid {uid}",
            request_id=request_id,
        )

    async def _name(self, uid: int) -> str:
        known = self._names.get(uid)
        if known is not None and time.monotonic() < known[1]:
            return known[0]
        # Concurrent requests must not start another look-up, which may never end.
        self._keep(uid, "", NAME_SECONDS)
        name = await self._look_up(uid)
        self._keep(uid, name, KEPT_SECONDS if name else NAME_SECONDS)
        return name

    def _keep(self, uid: int, name: str, seconds: float) -> None:
        self._names.pop(uid, None)
        self._names[uid] = (name, time.monotonic() + seconds)
        while len(self._names) > _MOST:
            del self._names[next(iter(self._names))]

    async def _look_up(self, uid: int) -> str:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[str] = loop.create_future()

        def settle(name: str) -> None:
            if not result.done():
                result.set_result(name)

        def look_up() -> None:
            try:
                name = self._name_of(uid)
            except (KeyError, OSError):
                name = ""
            if not name.isprintable() or len(name) > _LENGTH:
                name = ""
            try:
                loop.call_soon_threadsafe(settle, name)
            except RuntimeError:
                return  # the loop is closed

        # Not one of the loop's executor threads, whose end the process waits for.
        threading.Thread(target=look_up, name="user name", daemon=True).start()
        try:
            async with asyncio.timeout(NAME_SECONDS):
                return await result
        except TimeoutError:
            return ""


def user_of(request: web.Request) -> int:
    """The user id of the process at the other end. Raises AuthorityUnavailable."""
    connection = request.get_extra_info("socket")
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except (OSError, AttributeError) as error:
        raise AuthorityUnavailable(_UNKNOWN) from error
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    if uid == _NOBODY:
        raise AuthorityUnavailable(_UNKNOWN)
    return int(uid)
