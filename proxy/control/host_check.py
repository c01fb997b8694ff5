"""``Host`` check of the TCP listener, against DNS rebinding.

Rules of this module:
1. A name is accepted only if it is ``localhost``, the address that the listener is bound to, or configured.
2. An address literal is accepted: a page that was loaded under a name cannot make a browser send one, and health
   probes of orchestrators send nothing else.
3. Anything else, also a missing or repeated ``Host``, is refused before any handler.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.control.problems import ProblemKind, RequestRefused

_MISDIRECTED: Final = ProblemKind(status=421, reason="host_invalid", title="The Host is not one of this listener")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::[0-9]{1,5})?", re.ASCII)


def only_hosts(names: Iterable[str]) -> Middleware:
    """A middleware that accepts only ``localhost``, ``names`` (without port) and address literals as ``Host``."""
    accepted = frozenset({"localhost", *(name.lower().strip("[]") for name in names)})

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not _accepts(accepted, hosts[0]):
            raise RequestRefused(_MISDIRECTED)
        return await handler(request)

    return check


def _accepts(accepted: frozenset[str], host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match.group(1).lower().strip("[]")
    return name in accepted or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
