"""The limit of open file descriptors of a worker, and how many client connections it allows.

A client's connection takes one descriptor, and the backend connection that its request needs takes another. The
number of clients is limited so that an authorised request never fails for want of the second.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from proxy.settings.model import Settings
from proxy.settings.sections.upstreams import Upstream

GENEROUS: Final = 16_384
"""Connections of one listener where the settings name no number: at 40 KiB each they take 640 MiB."""
OWN: Final = 96
"""Descriptors of the process itself: standard streams, listening sockets, authority link, shared memory, libraries, and
some to spare."""
_ENDLESS: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """How many connections each listener of a worker may have."""

    proxy: int
    forward_auth: int
    ext_authz: int


def raise_limit() -> int:
    """Raise the limit of descriptors as far as the system allows; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _ENDLESS if hard == resource.RLIM_INFINITY else hard


def connections(settings: Settings, files: int) -> ConnectionLimits:
    """The connections that each listener may have with ``files`` descriptors: as many as the settings say, or fewer."""
    listen = settings.listen
    free = max(files - OWN, 4)
    free -= min(_idle(settings.upstreams.values()), free // 4)
    ingresses = dict.fromkeys(("forward_auth", "ext_authz"), 0)
    for name, listener in listen.for_ingresses():
        # Its requests go to no backend, so each takes one descriptor.
        ingresses[name] = max(1, min(listener.connections or GENEROUS, free // 4))
        free -= ingresses[name]
    return ConnectionLimits(proxy=max(1, min(listen.proxy.connections or GENEROUS, free // 2)), **ingresses)


def _idle(upstreams: Iterable[Upstream]) -> int:
    """Idle connections that the pools of all backends may keep."""
    return sum(upstream.max_idle * len(upstream.servers) for upstream in upstreams)
