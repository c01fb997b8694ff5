"""What is known of one request besides itself, and what happens around every handler.

Rules of this module:
1. Every request gets an id of ours, whatever it brought: `X-Request-Id`, and `decision` in problems, log and audit.
2. Every answer that is not a success is made here, from what was raised; a defect is logged and shown as nothing more.
3. Refusals are counted, and logged at a rate that nobody can raise.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.control.problems import DEFECT, Refusal, problem, refusal_of
from proxy.observe import defects
from proxy.observe.logs import get_logger

REQUEST_ID: Final = web.RequestKey("request_id", str)
NAME: Final = web.RequestKey("operation", str)
ID_HEADER: Final = "X-Request-Id"
LINES_AT_ONCE: Final = 50
LINES_PER_SECOND: Final = 5.0
"""Of some 400 bytes each: 120 kB a minute, whatever is sent."""

_log = get_logger("control")

Refused = Callable[[web.BaseRequest, Refusal], None]
"""Told of every refusal."""


class RefusalLog:
    """Counts refusals by reason (`count`) and logs them, within bounds by the clock given."""

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


def exchanges(realm: str, refused: Refused) -> Middleware:
    """The outermost middleware: ids, problems, and `refused` told of each."""

    @web.middleware
    async def exchange(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = request[REQUEST_ID] = secrets.token_hex(16)
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            refusal = refusal_of(error) or DEFECT
        except Exception as error:  # noqa: BLE001 - whatever it is, the answer is a problem; a defect is logged
            known = refusal_of(error)
            if known is None:
                operation = request.get(NAME, "-")
                defects.report("a request of the control API failed", error, decision=request_id, operation=operation)
            refusal = known or DEFECT
        refused(request, refusal)
        return problem(refusal, realm=realm, decision=request_id)

    return exchange


async def finish(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer has and has not; a signal of aiohttp's, called before the head is written."""
    # Versions of Python and of libraries are nobody's business.
    response.headers.pop("Server", None)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    request_id = request.get(REQUEST_ID)
    if request_id is not None:
        response.headers[ID_HEADER] = request_id
