"""The route phase: canonicalises the target and finds the first route that matches it (``core.request``)."""

from __future__ import annotations

from proxy.core.reasons import Reason
from proxy.core.request.request_reading import judge
from proxy.core.routes import RouteTable
from proxy.gateway.exchange import Exchange


def route(table: RouteTable, x: Exchange) -> Reason | None:
    """Set ``x.match``, or refuse: an ambiguous target, no route, or a route with ``access: denied``."""
    x.match, reason = judge(table, x.method, x.host_name, x.path, x.query)
    return reason
