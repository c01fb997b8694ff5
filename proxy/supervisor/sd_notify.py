"""What systemd hears of the gateway: sd_notify(3) over the socket that ``NOTIFY_SOCKET`` names.

Of the libraries that speak it none is both maintained and free of libsystemd; the protocol is a datagram of lines.
Rules: nothing here can fail the gateway, and nothing waits.
"""

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
_WATCHDOG_PARTS: Final = 2
"""A watchdog is fed twice in its time (sd_watchdog_enabled(3))."""


class Notifier:
    """Says things to the service manager, if there is one. ``watchdog_seconds`` is how often it wants to hear from
    us.
    """

    def __init__(self, address: str | None = None, *, watchdog_seconds: float | None = None) -> None:
        self._address = _address(address) if address else None
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int) -> "Notifier":
        """As ``environ`` says; a watchdog that is meant for another process than ``pid`` is none of ours."""
        watchdog: float | None = None
        meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        usec = environ.get("WATCHDOG_USEC", "")
        if meant and usec.isascii() and usec.isdecimal() and int(usec) > 0:
            watchdog = int(usec) / 1e6 / _WATCHDOG_PARTS
        return cls(environ.get("NOTIFY_SOCKET"), watchdog_seconds=watchdog)

    def ready(self, status: str) -> None:
        """The start, or a reload, is complete."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; the time tells its READY=1 from an earlier one (Type=notify-reload)."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        """The stop has begun."""
        self._say("STOPPING=1", "STATUS=draining")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._say(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> None:
        if self._address is None:
            return
        message = "\n".join(" ".join(line.split()) for line in lines).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message, self._address)
        except OSError:
            return  # a manager that does not listen is no reason to serve nobody


def _address(name: str) -> bytes | None:
    """A socket's address, ``@`` standing for the NUL of the abstract namespace (unix(7)); ``None`` for another kind."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return os.fsencode(name) if name.startswith("/") else None


def is_private(name: str) -> bool:
    """Whether a variable is between systemd and this process, and not for its children."""
    return name in _VARIABLES or name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
