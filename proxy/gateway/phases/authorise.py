"""The authorise phase: checks the grant against the matched operation, by ``core.decision``."""

from __future__ import annotations

import time
from typing import Final

from proxy.core.decision import decide
from proxy.core.reasons import Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.expiry_clock import EXPIRY_CLOCK

# Looking a member up in its enumeration costs more than the comparison with it.
_ALLOWED: Final = Reason.ALLOWED
# A call through the module, ``time.x()``, costs twice as much.
_now: Final = time.time


def authorise(x: Exchange) -> Reason | None:
    """None when the grant of ``x`` allows the matched operation now (``EXPIRY_CLOCK``), else the refusal."""
    match, entry = x.match, x.entry
    if match is None or entry is None:
        return Reason.NO_ROUTE
    grant, client = entry.grant, x.client
    # Most grants have no ranges, and then the address does not matter.
    address = "" if grant.ranges is None or client is None else client.address(x)
    reason = decide(match, grant, _now() + EXPIRY_CLOCK.ahead, address)
    return None if reason is _ALLOWED else reason
