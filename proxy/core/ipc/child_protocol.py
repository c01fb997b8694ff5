"""The protocol between the supervisor and its child processes: pipe messages, commands and an exit status.

A child writes one line to its ready pipe: ``READY``, or ``ERROR`` and a sentence. A standby process ("spare") first
writes ``SPARE`` there, when it has loaded everything, and then waits on another pipe for one line: a JSON list of the
arguments that a new child for that slot would have been started with.

A child that is ready also receives commands (``CommandName``) with descriptors over its channel, and sends heartbeats
back. A reload is PREPARE to every child, HOLD to the workers, COMMIT to the authority and then to the workers; ABORT
cancels it before a COMMIT.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from proxy.core.errors import Origin, PatgateError

READY: Final = b"ready\n"
SPARE: Final = b"spare\n"
ERROR: Final = b"error: "

SPARE_SUFFIX: Final = "-spare"
"""Suffix of a spare's role on its command line, until it replaces a dead child."""

DATA_DIR_LOST: Final = 3
"""The exit status of an authority that lost its data directory: a restart cannot help."""

BEAT_SECONDS: Final = 0.5
"""Seconds between two heartbeats of a child."""


class CommandName(StrEnum):
    """The commands of the supervisor to a child."""

    PREPARE = "prepare"
    """Prepare new settings: the first descriptor is their document, the others are the listening sockets in the order
    of the detail ``sockets``, a list of names."""
    HOLD = "hold"
    """Start no request until COMMIT or ABORT."""
    COMMIT = "commit"
    """Use what was prepared."""
    ABORT = "abort"
    """Discard what was prepared and continue as before."""
    LEAVE = "leave"
    """Close each connection after its response, because this process will end soon."""
    STATE = "state"
    """For the authority to show: the details ``starting``, ``draining``, ``workers`` (how many there should be),
    ``reload_ok`` and ``reload_time`` (unix seconds of the last reload that succeeded, or null)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlCommand:
    """A received command; its handler owns the descriptors."""

    name: str
    details: Mapping[str, Any]
    fds: tuple[int, ...] = ()


class CommandRefused(PatgateError):
    """A child did not carry out a command; the message says why. ``answered``: the child itself reported it."""

    origin = Origin.OPERATOR

    def __init__(self, message: str, *, answered: bool = True) -> None:
        super().__init__(message)
        self.answered = answered


class CommandSource(Protocol):
    """The child's end of its channel to the supervisor."""

    def serve(self, handle: Callable[[ControlCommand], Awaitable[None]]) -> None:
        """Start to pass each command to ``handle``, one after the other; its exception is the reply."""
        ...

    def beat(self) -> None:
        """Send a heartbeat to the supervisor."""
        ...

    async def end(self) -> None:
        """Accept no more commands."""
        ...
