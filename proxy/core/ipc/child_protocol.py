"""What a supervisor and its children say to each other: words over pipes, and an exit status.

A child says one line over its ready pipe: ``READY``, or ``ERROR`` and a sentence. A spare says ``SPARE`` there before,
once it has loaded everything, and waits for its orders on a pipe of its own: one line, a JSON list of the arguments
that a child started for that slot would have been given.

Once it is ready a child also takes orders (``OrderName``) over a channel of its own, with descriptors beside them, and
says over it that it still turns. A reload is PREPARE to every child, HOLD to the workers, COMMIT to the authority and
then to the workers; ABORT takes back what came before a COMMIT.
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
"""What a spare's role ends in on its command line, until it takes the part of the dead."""

DATA_DIR_LOST: Final = 3
"""The exit status of an authority whose data directory is no longer its own: starting another one cannot help."""

BEAT_SECONDS: Final = 0.5
"""How often a child says that it still turns."""


class CommandName(StrEnum):
    """What a child can be ordered to do."""

    PREPARE = "prepare"
    """Get new settings ready: the first descriptor is their document, the others the listening sockets in the order of
    the detail ``sockets``, a list of names."""
    HOLD = "hold"
    """Begin no request until COMMIT or ABORT."""
    COMMIT = "commit"
    """Run on what was prepared."""
    ABORT = "abort"
    """Forget what was prepared and go on as before."""
    LEAVE = "leave"
    """Let every answer close its connection, because this process will end soon."""
    STATE = "state"
    """For the authority, to be shown: the details ``starting``, ``draining``, ``workers`` (how many there
    should be), ``reload_ok`` and ``reload_time`` (unix seconds of the last one that succeeded, or null)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlCommand:
    """An order as it came; its descriptors belong to whoever handles it."""

    name: str
    details: Mapping[str, Any]
    fds: tuple[int, ...] = ()


class CommandRefused(PatgateError):
    """A child did not do what it was ordered to; the message says why. ``answered``: it said so itself."""

    origin = Origin.OPERATOR

    def __init__(self, message: str, *, answered: bool = True) -> None:
        super().__init__(message)
        self.answered = answered


class CommandSource(Protocol):
    """The child's end of its channel."""

    def serve(self, handle: Callable[[ControlCommand], Awaitable[None]]) -> None:
        """Have ``handle`` carry out each order from now on, one after the other; what it raises is the answer."""
        ...

    def beat(self) -> None:
        """Tell the supervisor that this process still turns."""
        ...

    async def end(self) -> None:
        """Take no more orders."""
        ...
