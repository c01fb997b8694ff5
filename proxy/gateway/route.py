"""The route phase: a canonical target, then the first route that matches it.

The path is judged here and nowhere else (threats.md section 1); what the backend gets is the bytes that were judged.
"""

from __future__ import annotations

from typing import Final

from proxy.core.model import Access
from proxy.core.reasons import Reason
from proxy.core.routes import RouteTable
from proxy.core.target import canonical_path
from proxy.gateway.exchange import Exchange

_METHODS: Final = {name.encode("ascii"): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
# Looking a member up in its enumeration costs more than the comparison with it.
_DENIED: Final = Access.DENIED
_REFUSED_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))


def route(table: RouteTable, x: Exchange) -> Reason | None:
    """Set `x.match`, or refuse: a target with two readings, no route, or a route that no token opens."""
    if x.method in _REFUSED_METHODS:
        return Reason.METHOD_REFUSED
    judged = canonical_path(x.path)
    if judged is None:
        return Reason.TARGET_NOT_CANONICAL
    path, needs = judged
    method = _METHODS.get(x.method)
    if method is None:
        # Methods are case-sensitive (RFC 9110 section 9.1), and some backends read them as if they were not.
        if x.method != x.method.upper():
            return Reason.METHOD_REFUSED
        method = x.method.decode("ascii")
    x.match = match = table.match(method, x.host_name, path)
    if match is None:
        return Reason.TARGET_NOT_CANONICAL if needs else Reason.NO_ROUTE
    if needs & ~match.route.allow:
        return Reason.TARGET_NOT_CANONICAL
    if match.route.access is _DENIED:
        return Reason.ROUTE_DENIED
    return None
