"""The clock of leases and of the stamps of requests: CLOCK_BOOTTIME, which all processes of a host share.

It is monotonic and counts the time of a suspend too, clock_gettime(2). With CLOCK_MONOTONIC a host that wakes up would
still hold its lease, although every other node has stopped waiting for it long ago.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

boottime_ns: Final[Callable[[], int]] = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
"""CLOCK_BOOTTIME in nanoseconds. A partial, because a function of Python would cost more than the clock itself."""
