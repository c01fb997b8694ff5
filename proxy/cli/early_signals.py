"""Early signal handling: signals that arrive before a command can handle them.

Rules:
1. SIGTERM ends a command from its start. The first process of a container has no default action (pid_namespaces(7)):
   until it has a handler, the kernel drops the signal.
2. SIGHUP requests a reload of a gateway, not its end: a SIGHUP during the start is kept until the start is complete.
   If standard input is a terminal, it keeps its default action, because it means that the terminal was closed.
"""

import os
import signal
from types import FrameType
from typing import Final

_HUNG_UP: Final[list[int]] = []


def listen() -> None:
    """Apply rule 1 to this process."""
    signal.signal(signal.SIGTERM, _end)
    # The process that started this one may have blocked some, and blocked signals are inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def keep_hangups() -> None:
    """Apply rule 2, for a gateway that is about to read its configuration."""
    if not os.isatty(0):
        signal.signal(signal.SIGHUP, lambda number, _: _HUNG_UP.append(number))


def hung_up() -> bool:
    """Whether a SIGHUP was kept."""
    return bool(_HUNG_UP)


def ignore() -> None:
    """Ignore signals from now on: this process has ended everything, and they must not change its exit status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # reached in the first process of a container only
