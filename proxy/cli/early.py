"""Signals that come before a command is ready for them.

Rules:
1. SIGTERM ends a command from its first moment. The first process of a container has no default action
   (pid_namespaces(7)): until a handler is there, the kernel drops the signal.
2. SIGHUP asks a gateway for a reload, not for its end: one that comes during the start is kept until it has started.
   Where standard input is a terminal it keeps its default action, since the terminal is gone then.
"""

import os
import signal
from types import FrameType
from typing import Final

_HUNG_UP: Final[list[int]] = []


def listen() -> None:
    """Rule 1, for the whole process."""
    signal.signal(signal.SIGTERM, _end)
    # Blocked signals are inherited, and whoever started this process may have blocked some.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def keep_hangups() -> None:
    """Rule 2, for a gateway that is about to read its configuration."""
    if not os.isatty(0):
        signal.signal(signal.SIGHUP, lambda number, _: _HUNG_UP.append(number))


def hung_up() -> bool:
    """Whether a SIGHUP was kept."""
    return bool(_HUNG_UP)


def ignore() -> None:
    """Take no more notice: this process has ended all that it started, and its exit status says how that went."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container is still here
