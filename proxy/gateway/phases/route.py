"""The route phase: a canonical target, then the first route that matches it, by the one reading of ``core.asked``."""

from __future__ import annotations

from proxy.core.reasons import Reason
from proxy.core.request.request_reading import judge
from proxy.core.routes import RouteTable
from proxy.gateway.exchange import Exchange


def route(table: RouteTable, x: Exchange) -> Reason | None:
    """Set ``x.match``, or refuse: a target with two readings, no route, or a route that no token opens."""
    x.match, reason = judge(table, x.method, x.host_name, x.path)
    return reason
