"""What a supervisor and its children say to each other: words over pipes, and an exit status.

A child says one line over its ready pipe: `READY`, or `ERROR` and a sentence. A spare says `SPARE` there before, once
it has loaded everything, and waits for its orders on a pipe of its own: one line, a JSON list of the arguments that a
child started for that slot would have been given.
"""

from __future__ import annotations

from typing import Final

READY: Final = b"ready\n"
SPARE: Final = b"spare\n"
ERROR: Final = b"error: "

SPARE_SUFFIX: Final = "-spare"
"""What a spare's role ends in on its command line, until it takes the part of the dead."""

DATA_DIR_LOST: Final = 3
"""The exit status of an authority whose data directory is no longer its own: starting another one cannot help."""
