"""Refusals of the control API on TCP: counted, logged, and left in the audit log.

Rules of this module:
1. Each is counted by its reason. Lines of the log are bounded (``RefusalLog``), and so are events (``RefusalEvents``),
   in numbers that no client can raise.
2. Events take the way of those of requests that the gateway refused: to the recorder, which writes them in batches.
   ``audit.requests: off`` turns both off. What fails on our side (5xx) leaves none.
3. Of what a client sent, an event has the method, the path without its query, and the path's parameters, redacted and
   cut. Of a token it has the public prefix; it is the actor where it was proven, or where there is such a token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from aiohttp import web

from proxy.control.middleware import ACTOR, NAME, REQUEST_ID
from proxy.control.problems import Refusal
from proxy.control.runtime import ControlRuntime
from proxy.core.event_quota import REFUSALS, STRANGERS, STRANGERS_BURST, TimedEventQuota
from proxy.observe.logs import get_logger, redact
from proxy.observe.metrics import Outcome
from proxy.store.audit.chain import Event
from proxy.store.audit.request_events import RequestEvent

LINES_AT_ONCE: Final = 50
LINES_PER_SECOND: Final = 5.0
"""Of some 400 bytes each: 120 kB a minute, whatever is sent."""
ACTION: Final = "api"
"""The action of a refused request of the API; where it was one of the table, with a dot and its name behind it."""

_PATH: Final = 512
_TARGET: Final = 128
_ACTION: Final = 64
_METHOD: Final = 32
_ADDRESS: Final = 64
_REASON: Final = 32

_log = get_logger("control")


class Refusals:
    """Told of every refusal."""

    def __init__(self, runtime: ControlRuntime) -> None:
        self._each = (RefusalLog(runtime.refused), RefusalEvents(runtime))

    def __call__(self, request: web.BaseRequest, refusal: Refusal) -> None:
        for one in self._each:
            one(request, refusal)


class RefusalLog:
    """Counts refusals by reason (``count``) and logs them, within bounds by the clock given."""

    def __init__(self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._lines = float(LINES_AT_ONCE)
        self._at = clock()
        self._left_out = 0

    def __call__(self, request: web.BaseRequest, refusal: Refusal) -> None:
        because = refusal.because or refusal.kind.reason
        self._count(because)
        now = self._clock()
        self._lines = min(float(LINES_AT_ONCE), self._lines + (now - self._at) * LINES_PER_SECOND)
        self._at = now
        if self._lines < 1.0:
            self._left_out += 1
            return
        self._lines -= 1.0
        left_out, self._left_out = self._left_out, 0
        _log.info(
            "api request refused",
            decision=request.get(REQUEST_ID, ""),
            operation=request.get(NAME, "-"),
            status=refusal.kind.status,
            reason=because,
            token=refusal.prefix or None,
            peer=request.remote or "",
            **({"left_out": left_out} if left_out else {}),
        )


class RefusalEvents:
    """Leaves an event of each refusal in the audit log, as many as the bounds allow; the rest is counted there."""

    def __init__(self, runtime: ControlRuntime, clock: Callable[[], float] = time.monotonic) -> None:
        self._runtime = runtime
        self._clock = clock
        self._strangers = TimedEventQuota(STRANGERS, STRANGERS_BURST, clock())
        self._refusals = TimedEventQuota(REFUSALS, REFUSALS, clock())

    def __call__(self, request: web.BaseRequest, refusal: Refusal) -> None:
        if refusal.kind.status >= 500 or not self._runtime.records_refusals:
            return
        actor = request.get(ACTOR)
        allowance = self._strangers if actor is None else self._refusals
        if not allowance.take(self._clock()):
            self._runtime.omit(1)
            return
        prefix = refusal.prefix
        if actor is not None and actor.credential is not None:
            prefix = actor.credential.prefix
        event = _event(request, refusal)
        self._runtime.record(RequestEvent(event=event, prefix=prefix, proven=actor is not None, at=time.time()))


def _event(request: web.BaseRequest, refusal: Refusal) -> Event:
    name, request_id = request.get(NAME), request.get(REQUEST_ID, "")
    # Only of a request that came to an operation is it known which parts of the path are parameters.
    named = request.match_info.values() if isinstance(request, web.Request) and name is not None else ()
    return Event(
        action=(ACTION if name is None else f"{ACTION}.{name}")[:_ACTION],
        target_kind=ACTION,
        target_id=_kept("/".join(named), _TARGET),
        outcome=Outcome.REFUSED.value,
        reason=(refusal.because or refusal.kind.reason)[:_REASON],
        address=(request.remote or "")[:_ADDRESS],
        request_id=request_id,
        decision_id=request_id,
        details={
            "method": _kept(request.method, _METHOD),
            "path": _kept(request.raw_path.partition("?")[0], _PATH),
            "status": refusal.kind.status,
        },
    )


def _kept(text: str, limit: int) -> str:
    """``text`` cut and redacted, and such as every store keeps: no NUL, no lone surrogate."""
    return redact(text[:limit].encode("utf-8", "replace").decode().replace("\0", "\ufffd"))[:limit]
