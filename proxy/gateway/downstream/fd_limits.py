"""How many descriptors a worker may open, and how many of them its clients may have.

A client's connection takes one, and so does the one to the backend that its request needs. What clients may take is
held so low that a request which was authorised never fails for want of the second.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from proxy.settings.model import Settings, Upstream

GENEROUS: Final = 16_384
"""Connections of one listener where nobody asked for more: at 40 KiB each they are 640 MiB."""
OWN: Final = 96
"""Descriptors of the process itself: standard streams, listening sockets, link, page, libraries, and some to spare."""
_ENDLESS: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """How many connections each listener of a worker may have."""

    proxy: int
    forward_auth: int


def raise_limit() -> int:
    """Take as many descriptors as the system lets this process have, and say how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _ENDLESS if hard == resource.RLIM_INFINITY else hard


def connections(settings: Settings, files: int) -> ConnectionLimits:
    """The connections that each listener may have out of ``files`` descriptors: what the settings say, or less."""
    listen = settings.listen
    free = max(files - OWN, 4)
    free -= min(_idle(settings.upstreams.values()), free // 4)
    forward_auth = 0
    if listen.forward_auth is not None:
        # Its requests go nowhere, so that one descriptor is all that each takes.
        forward_auth = max(1, min(listen.forward_auth.connections or GENEROUS, free // 4))
        free -= forward_auth
    return ConnectionLimits(
        proxy=max(1, min(listen.proxy.connections or GENEROUS, free // 2)), forward_auth=forward_auth
    )


def _idle(upstreams: Iterable[Upstream]) -> int:
    """Connections to backends that may be kept without a request on them."""
    return sum(upstream.max_idle * len(upstream.servers) for upstream in upstreams)
