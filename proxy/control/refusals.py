"""Refusals of the control API on TCP: counts them, logs them, and records them in the audit log.

Rules of this module:
1. Each refusal is counted by its reason. Log lines (``RefusalLog``) and audit events (``RefusalEvents``) are bounded by
   limits that no client can raise.
2. Events go to the same recorder as those of the gateway's requests, which writes them in batches.
   ``audit.requests: off`` turns both off. Failures on our side (5xx) are not recorded.
3. From the request an event has the method, the path without its query, and the path's parameters, redacted and
   truncated. It has the token's public prefix; the token is the actor if it was proven, or if it exists.
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
"""With about 400 bytes each: at most 120 kB a minute."""
ACTION: Final = "api"
"""The action of a refused request; if it matched an operation, followed by a dot and the operation's name."""

_PATH: Final = 512
_TARGET: Final = 128
_ACTION: Final = 64
_METHOD: Final = 32
_ADDRESS: Final = 64
_REASON: Final = 32

_log = get_logger("control")


class Refusals:
    """Passes every refusal to the log and the audit log."""

    def __init__(self, runtime: ControlRuntime) -> None:
        self._each = (RefusalLog(runtime.refused), RefusalEvents(runtime))

    def __call__(self, request: web.BaseRequest, refusal: Refusal) -> None:
        """Pass a refusal on."""
        for one in self._each:
            one(request, refusal)


class RefusalLog:
    """Counts refusals by reason (``count``) and logs them, at a bounded rate by ``clock``."""

    def __init__(self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._lines = float(LINES_AT_ONCE)
        self._at = clock()
        self._left_out = 0

    def __call__(self, request: web.BaseRequest, refusal: Refusal) -> None:
        """Count a refusal, and log it if the rate allows."""
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
    """Records each refusal in the audit log, up to a bound; the others are only counted there."""

    def __init__(self, runtime: ControlRuntime, clock: Callable[[], float] = time.monotonic) -> None:
        self._runtime = runtime
        self._clock = clock
        self._strangers = TimedEventQuota(STRANGERS, STRANGERS_BURST, clock())
        self._refusals = TimedEventQuota(REFUSALS, REFUSALS, clock())

    def __call__(self, request: web.BaseRequest, refusal: Refusal) -> None:
        """Record a refusal if the rate allows."""
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
    # Path parameters are known only for a request that matched an operation.
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
    """``text`` truncated, redacted, and valid in every store: no NUL, no lone surrogate."""
    return redact(text[:limit].encode("utf-8", "replace").decode().replace("\0", "\ufffd"))[:limit]
