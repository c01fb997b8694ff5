"""Reads TCP connections from /proc (proc(5), tcp(7)): the process that serves one, and the kernel's buffer size.

Workers share a port with SO_REUSEPORT, and a response does not identify its worker, so tests find it here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.support.process import HANGS_SECONDS, wait_until

ESTABLISHED = "01"
CLOSE_WAIT = "08"


def kernel_keeps() -> int:
    """The most bytes that this kernel buffers in one direction of a connection whose reader does not read."""
    maxima = (Path(f"/proc/sys/net/ipv4/tcp_{buffer}").read_text().split()[2] for buffer in ("rmem", "wmem"))
    return sum(map(int, maxima))


def unread(server_port: int, client_port: int) -> int | None:
    """How many bytes of the client the server has not read yet; None if the kernel knows no such connection."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = tuple(int(each.rpartition(":")[2], 16) for each in fields[1:3])
        if ports == (server_port, client_port):
            return int(fields[4].rpartition(":")[2], 16)
    return None


def taken(server_port: int, client_ports: Iterable[int]) -> set[int]:
    """The ports of clients whose connection the server has not ended yet, accepted or not."""
    wanted = set(client_ports)
    held = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(each.rpartition(":")[2], 16) for each in fields[1:3])
        if local == server_port and remote in wanted and fields[3] in (ESTABLISHED, CLOSE_WAIT):
            held.add(remote)
    return held


def serving_pid(server_port: int, client_port: int, pids: Iterable[int], *, seconds: float = HANGS_SECONDS) -> int:
    """Wait until one of ``pids`` has accepted the connection, and return the one that holds the server's end."""
    candidates = list(pids)

    def holder() -> int | None:
        inode = _inode(server_port, client_port)
        if inode is None:
            return None
        return next((pid for pid in candidates if _holds(pid, inode)), None)

    return wait_until(holder, f"one of {candidates} accepting the connection from port {client_port}", seconds=seconds)


def _inode(server_port: int, client_port: int) -> str | None:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote, state, inode = fields[1], fields[2], fields[3], fields[9]
        ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        if ports == (server_port, client_port) and state == ESTABLISHED and inode != "0":
            return inode
    return None


def _holds(pid: int, inode: str) -> bool:
    wanted = f"socket:[{inode}]"
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(descriptor) == wanted:
                return True
        except OSError:
            continue  # closed while we were reading
    return False
