"""Socket activation: adopts listening sockets that systemd has opened, by sd_listen_fds(3).

Rules of this module:
1. A socket is assigned to a listener by the name it was passed with (``proxy``, ``forward_auth``, ``ext_authz``,
   ``control``), else by its address.
2. A socket that is no listening stream socket, or that fits no listener, prevents the start: clients would wait on it.
   A unix socket fits only a listener that is configured with one: its clients need no address in ``trusted``.
3. Workers share such a socket: all accept from one queue.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from proxy.settings.addresses import Bind
from proxy.supervisor.config_generation import CONTROL
from proxy.supervisor.errors import ListenerRefused
from proxy.supervisor.listeners import UNIX, ListeningSockets

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""
_MOST: Final = 64
_ANY: Final = frozenset(("0.0.0.0", "::"))  # noqa: S104 - only compared with
_UNNAMED: Final = frozenset(("", "unknown", "stored"))


def passed(environ: Mapping[str, str], pid: int) -> list[tuple[str, int]]:
    """Name and descriptor of each socket that was passed to the process ``pid``.

    Raises ``ListenerRefused`` when the variables contradict each other.
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
    """Assign the passed sockets to the listeners in ``binds``. Raises ``ListenerRefused``."""
    with ExitStack() as stack:
        adopted = _by_listener(sockets, binds, stack)
        stack.pop_all()
    return {
        name: ListeningSockets(name=name, address=_text(socks[0]), sockets=tuple(socks))
        for name, socks in adopted.items()
    }


def _by_listener(
    sockets: list[tuple[str, int]], binds: Mapping[str, Bind], stack: ExitStack
) -> dict[str, list[socket.socket]]:
    """Sockets by the name of their listener; ``stack`` closes them when one is refused."""
    result: dict[str, list[socket.socket]] = {}
    for name, fd in sockets:
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ListenerRefused(f"The service manager passed descriptor {fd}, which is no socket.") from error
        stack.enter_context(sock)
        if not _listens(sock):
            raise ListenerRefused(f"The service manager passed descriptor {fd}, which is no listening stream socket.")
        sock.setblocking(False)
        listener = name if name in binds else _by_address(sock, binds) if name in _UNNAMED or "." in name else None
        if listener is None or bool(binds[listener].path) != (sock.family == socket.AF_UNIX):
            raise ListenerRefused(
                f"The service manager passed a socket for {_text(sock)} that belongs to no listener: "
                f"name it {', '.join(binds)} (FileDescriptorName) or give it the address of one."
            )
        if listener == CONTROL and listener in result:
            raise ListenerRefused("The service manager passed several sockets for the control listener, which has one.")
        result.setdefault(listener, []).append(sock)
    return result


def _listens(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        return False
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _by_address(sock: socket.socket, binds: Mapping[str, Bind]) -> str | None:
    if sock.family == socket.AF_UNIX:
        return next((name for name, bind in binds.items() if bind.path and bind.path == sock.getsockname()), None)
    host, port = sock.getsockname()[:2]
    for name, bind in binds.items():
        if not bind.path and bind.port == port and (bind.host == host or {bind.host, host} <= _ANY):
            return name
    return None


def _text(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        path = sock.getsockname()
        return UNIX + (path if isinstance(path, str) else repr(path))
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
