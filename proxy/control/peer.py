"""Who asks over the control socket: the operating system's user, as the kernel says (SO_PEERCRED, unix(7)).

Rules of this module:
1. The user is the effective one of the process that connected, when it connected. Nothing that a client says of itself
   counts: with sudo it is the user that sudo made it, and SUDO_USER is a claim.
2. The number always counts and is always said. In a container it is the number in patgate's own user namespace, and
   there may be no name for it; a user that this namespace does not know has the kernel's overflow number (65534).
3. The name is looked up in a thread, since a directory service may be asked, and for ``NAME_SECONDS`` at most: without
   an answer there is no name. It is kept for ``KEPT_SECONDS``.
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
"""What the kernel says where it knows nobody: of a TCP connection, for one."""
_UNKNOWN: Final = "the system does not say who asks over the control socket"


class Peers:
    """Finds the actor of a request on the control socket. ``name_of`` raises KeyError for a number without a name."""

    def __init__(self, name_of: Callable[[int], str] = lambda uid: pwd.getpwuid(uid).pw_name) -> None:
        self._name_of = name_of
        self._names: dict[int, tuple[str, float]] = {}

    async def actor(self, request: web.Request, request_id: str) -> Actor:
        """Who sent ``request``. Raises AuthorityUnavailable where the kernel does not say."""
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
        # Those who ask meanwhile do not begin another search: it may be one that does not end.
        self._keep(uid, "", NAME_SECONDS)
        name = await self._look(uid)
        self._keep(uid, name, KEPT_SECONDS if name else NAME_SECONDS)
        return name

    def _keep(self, uid: int, name: str, seconds: float) -> None:
        self._names.pop(uid, None)
        self._names[uid] = (name, time.monotonic() + seconds)
        while len(self._names) > _MOST:
            del self._names[next(iter(self._names))]

    async def _look(self, uid: int) -> str:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[str] = loop.create_future()

        def give(name: str) -> None:
            if not found.done():
                found.set_result(name)

        def look() -> None:
            try:
                name = self._name_of(uid)
            except (KeyError, OSError):
                name = ""
            if not name.isprintable() or len(name) > _LENGTH:
                name = ""
            try:
                loop.call_soon_threadsafe(give, name)
            except RuntimeError:
                return  # the loop has ended meanwhile

        # Not one of the loop's own threads: their end is waited for.
        threading.Thread(target=look, name="user name", daemon=True).start()
        try:
            async with asyncio.timeout(NAME_SECONDS):
                return await found
        except TimeoutError:
            return ""


def user_of(request: web.Request) -> int:
    """The number of the user at the other end. Raises AuthorityUnavailable."""
    connection = request.get_extra_info("socket")
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except (OSError, AttributeError) as error:
        raise AuthorityUnavailable(_UNKNOWN) from error
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    if uid == _NOBODY:
        raise AuthorityUnavailable(_UNKNOWN)
    return int(uid)
