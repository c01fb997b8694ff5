"""Unix sockets in the data directory: binds them with the permissions that protect them, and binds removed ones again.

File permissions are the credential, so they are set before the socket can be connected to. A socket whose path was
removed or replaced gets no new connections: ``keep_bound`` binds it again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from proxy.core.errors import ConfigurationError, DataDirBusy, PatgateError
from proxy.observe.logs import get_logger

BACKLOG: Final = 128
CHECK_SECONDS: Final = 0.5
"""How often the path of a socket is checked."""
_PATH_LIMIT: Final = 107
"""Maximum bytes of a socket's path (unix(7): ``sun_path`` holds 108 with the final NUL)."""

_log = get_logger("authority.sockets")


def bind_unix(path: Path) -> socket.socket:
    """A listening, non-blocking stream socket at ``path``, mode 0600. The socket of a dead authority is removed first.

    The caller holds the data directory's lock, so no process uses a socket found there. Raises ConfigurationError for a
    path that is too long, and DataDirBusy for one that is no socket or cannot be bound.
    """
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise ConfigurationError(f"data_dir is too long a path: {path.name} in it has more than {_PATH_LIMIT} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # A umask, not a later chmod: other users must not be able to connect in between.
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise DataDirBusy(f"{path.name} in the data directory cannot be bound: {error.strerror}") from error
    except BaseException:
        # Cancellation too: the descriptor must be closed before the error is raised again.
        listener.close()
        raise
    return listener


async def keep_bound(path: Path, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Bind ``path`` again whenever it no longer leads to the current socket, and pass the new socket to ``serve``.

    Never returns. Existing connections stay.
    """
    bound = _identity(path)
    failing = False
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if bound is not None and _identity(path) == bound:
            continue
        try:
            await serve(bind_unix(path))
        except (PatgateError, OSError) as error:
            # If the directory itself is gone, the renewal of the lease notices it, logs it and ends the process.
            if not failing and not _is_gone(path.parent):
                _log.error("a socket was removed and cannot be bound again", socket=path.name, error=error)
                failing = True
            continue
        bound, failing = _identity(path), False
        _log.warning("a socket was removed and is bound again", socket=path.name)


def _is_gone(directory: Path) -> bool:
    try:
        directory.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # it exists and cannot be read
    return False


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    # The time too, because inode numbers of removed files are reused soon.
    return status.st_dev, status.st_ino, status.st_mtime_ns


def peer_uid(connection: socket.socket) -> int:
    """The user id of the process at the other end (SO_PEERCRED, unix(7))."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", packed)
    return int(uid)


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise DataDirBusy(f"{path.name} in the data directory is not a socket")
    path.unlink()
