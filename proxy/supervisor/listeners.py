"""Listening sockets: bound once by the supervisor and inherited by the process of each slot.

Linux spreads connections over all listening sockets of one address that were bound with ``SO_REUSEPORT``. That option
would also let two gateways share a port by mistake, so a first bind without it checks whether the port is taken. The
sockets stay open in the supervisor: the replacement of a dead worker serves the connections in its queue.

A listener at a unix socket has one socket, from which all workers accept. Its file's mode is the credential of its
clients, so it is set before any of them can connect.
"""

import errno
import os
import socket
import stat
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Self

from proxy.supervisor.errors import ListenerRefused

BACKLOG: Final = 4096  # the kernel lowers it to net.core.somaxconn

UNIX: Final = "unix:"

_PROBES: Final = 3
_PROBE_AGAIN_SECONDS: Final = 0.1  # a process that was just killed gives its sockets back a moment after its locks


@dataclass(frozen=True, kw_only=True, slots=True)
class ListeningSockets:
    """The sockets of one listener, one per slot, and their actual address."""

    name: str
    address: str
    sockets: tuple[socket.socket, ...]
    bind: str = ""
    """The configured address, where this process has bound the sockets."""
    file: tuple[int, int] = (0, 0)
    """Device and inode of the file of a unix socket."""

    @property
    def port(self) -> int:
        """The actual port, also where the system has chosen it; 0 for a unix socket."""
        first = self.sockets[0]
        return 0 if first.family == socket.AF_UNIX else int(first.getsockname()[1])

    @property
    def path(self) -> str:
        """The path of the unix socket that this process has bound; "" for any other."""
        return self.bind.removeprefix(UNIX) if self.bind.startswith(UNIX) else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fd(self, slot: int = 0) -> int:
        """The descriptor for one slot."""
        return self.sockets[slot].fileno()

    def fds(self, slot: int, slots: int) -> tuple[int, ...]:
        """The descriptors for one of ``slots`` slots: every socket has a slot, and every slot a socket."""
        if len(self.sockets) < slots:
            return tuple(sock.fileno() for sock in self.sockets)  # all slots accept from one queue
        return tuple(sock.fileno() for sock in self.sockets[slot::slots])

    def with_slots(self, slots: int) -> "ListeningSockets":
        """This listener with at least ``slots`` sockets; the current ones stay, so no queued connection is lost.

        Raises ``ListenerRefused``.
        """
        missing = slots - len(self.sockets)
        if missing <= 0 or not self.bind or self.path:
            return self
        first = self.sockets[0]
        added: list[socket.socket] = []
        try:
            added.extend(_bound(first.family, first.getsockname(), reuse_port=True) for _ in range(missing))
        except OSError as error:
            for sock in added:
                sock.close()
            raise ListenerRefused(f"The {self.name} listener cannot use {self.bind}: {_because(error)}.") from error
        return replace(self, sockets=(*self.sockets, *added))

    def close(self, kept: Container[socket.socket] = ()) -> None:
        """Close this process's sockets but those in ``kept``; connections are refused once no child has one either.

        The file of a unix socket is removed at once.
        """
        for sock in self.sockets:
            if sock in kept or sock.fileno() < 0:
                continue
            # Not the file of another process that has taken its place.
            with suppress(OSError):
                if self.path and _identity(self.path) == self.file:
                    os.unlink(self.path)
            sock.close()

    def set_mode(self, mode: int) -> None:
        """Give the file of a unix socket this mode. Raises OSError."""
        if self.path and _identity(self.path) == self.file:
            os.chmod(self.path, mode)


def listen(
    name: str, host: str, port: int, slots: int = 1, shared: bool = False, *, beside_ours: bool = False
) -> ListeningSockets:
    """Bind ``slots`` sockets to one address, ``shared`` ones with ``SO_REUSEPORT``; all get the same port for port 0.

    ``beside_ours``: a shared listener of this process uses the port on another address, so the port does not count as
    taken. Raises ``ListenerRefused`` with one sentence that names the listener and the address.
    """
    where = _text(host, port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ListenerRefused(f"The {name} listener cannot use {where}: the host is not known here.") from error
    sockets: list[socket.socket] = []
    try:
        first = _bound(family, address, reuse_port=True) if shared and beside_ours else _exclusive(family, address)
        chosen = first.getsockname()
        if shared:
            first.close()
            sockets.extend(_bound(family, chosen, reuse_port=True) for _ in range(slots))
        else:
            sockets.append(first)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ListenerRefused(f"The {name} listener cannot use {where}: {_because(error)}.") from error
    return ListeningSockets(name=name, address=_text(host, chosen[1]), sockets=tuple(sockets), bind=where)


def listen_unix(name: str, path: str, mode: int) -> ListeningSockets:
    """Bind a unix socket at ``path``. The file of a socket on which no process listens is removed first.

    Raises ``ListenerRefused`` with one sentence that names the listener and the path.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # The new file gets at most the mode of the socket's descriptor (unix(7) leaves that to Linux).
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        os.chmod(path, mode)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        file = _identity(path)
    except OSError as error:
        sock.close()
        raise ListenerRefused(f"The {name} listener cannot use {UNIX}{path}: {_because(error)}.") from error
    return ListeningSockets(name=name, address=UNIX + path, sockets=(sock,), bind=UNIX + path, file=file)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _remove_stale(path: str) -> None:
    """Remove a socket on which no process listens. Raises OSError if one does, or if the file is no socket."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is in its place")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # a full queue: a process listens
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def free(host: str, port: int) -> bool:
    """Whether no process listens on this address now."""
    try:
        listen("probe", host, port).close()
    except ListenerRefused:
        return False
    return True


def _exclusive(family: int, address: object) -> socket.socket:
    for _ in range(_PROBES - 1):
        try:
            return _bound(family, address, reuse_port=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            time.sleep(_PROBE_AGAIN_SECONDS)
    return _bound(family, address, reuse_port=False)


def _bound(family: int, address: object, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)  # type: ignore[arg-type]  # the shape that getaddrinfo gave for this family
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _because(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process is listening there"
    if error.errno == errno.EACCES:
        return "this user may not listen there"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this host does not have that address"
    return (error.strerror or "the system refused").lower()


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
