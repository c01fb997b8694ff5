"""systemd notifications: state, status and watchdog, by sd_notify(3) over the socket in ``NOTIFY_SOCKET``.

No library for it is both maintained and free of libsystemd; the protocol is one datagram of lines. Rules: nothing here
can make the gateway fail, and nothing waits.
"""

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
_WATCHDOG_PARTS: Final = 2
"""Number of notifications in one watchdog period (sd_watchdog_enabled(3))."""


class Notifier:
    """Sends notifications to the service manager, if any. ``watchdog_seconds`` is the interval of watchdog messages."""

    def __init__(self, address: str | None = None, *, watchdog_seconds: float | None = None) -> None:
        self._address = _address(address) if address else None
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int) -> "Notifier":
        """Configure from ``environ``; a watchdog for another process than ``pid`` is ignored."""
        watchdog: float | None = None
        meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        usec = environ.get("WATCHDOG_USEC", "")
        if meant and usec.isascii() and usec.isdecimal() and int(usec) > 0:
            watchdog = int(usec) / 1e6 / _WATCHDOG_PARTS
        return cls(environ.get("NOTIFY_SOCKET"), watchdog_seconds=watchdog)

    def ready(self, status: str) -> None:
        """Report that the start or a reload is complete."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report that a reload begins; the time distinguishes its READY=1 from an earlier one (Type=notify-reload)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        """Report that the stop has begun."""
        self._send("STOPPING=1", "STATUS=draining")

    def status(self, text: str) -> None:
        """Set the status line of ``systemctl status``."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Send a watchdog message."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        message = "\n".join(" ".join(line.split()) for line in lines).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message, self._address)
        except OSError:
            return  # the gateway serves without its service manager


def _address(name: str) -> bytes | None:
    """A unix socket address, with ``@`` as the NUL of the abstract namespace (unix(7)); ``None`` for another kind."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else None


def is_private(name: str) -> bool:
    """Whether an environment variable is for this process alone, not for its children."""
    return name in _VARIABLES or name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
