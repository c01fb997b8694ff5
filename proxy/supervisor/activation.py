"""Listening sockets that systemd has opened for us: sd_listen_fds(3).

Rules of this module:
1. A socket is a listener's by the name it was passed with (``proxy``, ``forward_auth``, ``control``), else by its
   address.
2. One that is no listening TCP socket, or no listener's, keeps the gateway from starting: clients would wait on it.
3. Whoever gets one shares it: all workers accept from the one queue.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from proxy.settings.addresses import Bind
from proxy.supervisor.config_generation import CONTROL
from proxy.supervisor.errors import ListenerRefused
from proxy.supervisor.listeners import ListeningSockets

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""
_MOST: Final = 64
_ANY: Final = frozenset(("0.0.0.0", "::"))  # noqa: S104 - compared with, not listened on
_UNNAMED: Final = frozenset(("", "unknown", "stored"))


def passed(environ: Mapping[str, str], pid: int) -> list[tuple[str, int]]:
    """Name and descriptor of each socket that was passed to the process ``pid``; none where none was.

    Raises ``ListenerRefused`` where the variables contradict themselves.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return []
    count = environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdecimal()) or int(count) > _MOST:
        raise ListenerRefused("The service manager passed sockets, but LISTEN_FDS is not their number.")
    names = environ.get("LISTEN_FDNAMES", "").split(":") if environ.get("LISTEN_FDNAMES") else [""] * int(count)
    if len(names) != int(count):
        raise ListenerRefused("The service manager passed sockets, but LISTEN_FDNAMES has another number of names.")
    return [(name, FIRST_FD + place) for place, name in enumerate(names)]


def adopt(sockets: list[tuple[str, int]], binds: Mapping[str, Bind]) -> dict[str, ListeningSockets]:
    """The listeners that the passed sockets are for, out of those in ``binds``. Raises ``ListenerRefused``."""
    with ExitStack() as stack:
        found = _adopted(sockets, binds, stack)
        stack.pop_all()
    return {
        name: ListeningSockets(name=name, address=_text(socks[0]), sockets=tuple(socks))
        for name, socks in found.items()
    }


def _adopted(
    sockets: list[tuple[str, int]], binds: Mapping[str, Bind], stack: ExitStack
) -> dict[str, list[socket.socket]]:
    """Sockets by the listeners that they are for; ``stack`` closes them where one is refused."""
    found: dict[str, list[socket.socket]] = {}
    for name, fd in sockets:
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ListenerRefused(f"The service manager passed descriptor {fd}, which is no socket.") from error
        stack.enter_context(sock)
        if not _listens(sock):
            raise ListenerRefused(f"The service manager passed descriptor {fd}, which is no listening TCP socket.")
        sock.setblocking(False)
        listener = name if name in binds else _by_address(sock, binds) if name in _UNNAMED or "." in name else None
        if listener is None:
            raise ListenerRefused(
                f"The service manager passed a socket for {_text(sock)} that is no listener's: "
                f"name it {', '.join(binds)} (FileDescriptorName) or give it the address of one."
            )
        if listener == CONTROL and listener in found:
            raise ListenerRefused("The service manager passed several sockets for the control listener, which has one.")
        found.setdefault(listener, []).append(sock)
    return found


def _listens(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _by_address(sock: socket.socket, binds: Mapping[str, Bind]) -> str | None:
    host, port = sock.getsockname()[:2]
    for name, bind in binds.items():
        if bind.port == port and (bind.host == host or {bind.host, host} <= _ANY):
            return name
    return None


def _text(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
