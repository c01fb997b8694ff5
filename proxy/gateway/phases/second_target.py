"""The second-target phase: judges resources that header fields name, as strictly as the request's own target.

It runs only for requests with such a field, after the request's own target has been allowed
(``core/request/second_targets.py`` has the rules).
"""

from __future__ import annotations

import time
from typing import NamedTuple

from proxy.core.decision import decide
from proxy.core.model import Access
from proxy.core.reasons import Reason
from proxy.core.request.request_reading import only_reported
from proxy.core.request.second_targets import JUDGED, NamedTarget, judge_second, read_field, same_host
from proxy.core.routes import Match, RouteTable
from proxy.gateway.exchange import Exchange
from proxy.gateway.grants.expiry_clock import EXPIRY_CLOCK


class SecondTargetRefusal(NamedTuple):
    """Why a second target is refused: the match that refuses, if there is one, and the field.

    ``target`` is the target that was judged; None where the field could not be read.
    """

    match: Match | None
    reason: Reason
    field: bytes
    target: NamedTarget | None


def second_target(
    table: RouteTable, x: Exchange, *, hosts: tuple[bytes, ...], ports: bool
) -> SecondTargetRefusal | None:
    """None when every resource that the fields of ``x`` name is allowed, else the refusal.

    A refusal that its route only reports is returned only where no other resource is refused by an enforcing route.
    ``hosts`` are the values of ``Host`` that mean this host, compared with their ports if ``ports``.
    """
    own, fields = x.match, x.second
    assert own is not None and fields is not None
    passed_on = own.route.second_targets
    names = [name for name, _ in fields if name not in passed_on]
    reported: SecondTargetRefusal | None = None
    for name, value in fields:
        if name in passed_on:
            continue
        if name not in JUDGED:
            if not only_reported(own, Reason.SECOND_TARGET):
                return SecondTargetRefusal(own, Reason.SECOND_TARGET, name, None)
            reported = reported or SecondTargetRefusal(own, Reason.SECOND_TARGET, name, None)
            continue
        targets = read_field(name, value)
        if targets is None or names.count(name) > 1:
            return SecondTargetRefusal(own, Reason.SECOND_TARGET_INVALID, name, None)
        for target in targets:
            if target.authority is not None and not same_host(target.authority, hosts, ports=ports):
                return SecondTargetRefusal(own, Reason.SECOND_TARGET_INVALID, name, None)
            match, reason = judge_second(table, own, x.host_name, target)
            if reason is None and match is not None:
                reason = _granted(match, x)
            if reason is None:
                continue
            if match is None or not only_reported(match, reason):
                return SecondTargetRefusal(match, reason, name, target)
            reported = reported or SecondTargetRefusal(match, reason, name, target)
    return reported


def _granted(match: Match, x: Exchange) -> Reason | None:
    """Why the grant of ``x`` does not allow ``match``; None where it does, or where no grant is needed."""
    if match.route.access is not Access.TOKEN:
        return None
    if x.entry is None:
        return Reason.NO_CREDENTIAL
    grant, client = x.entry.grant, x.client
    address = "" if grant.ranges is None or client is None else client.address(x)
    reason = decide(match, grant, time.time() + EXPIRY_CLOCK.ahead, address)
    return None if reason is Reason.ALLOWED else reason
