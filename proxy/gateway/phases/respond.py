"""The respond phase: builds every response that the gateway itself produces: refusals, failures, answered preflights.

The body is ``application/problem+json`` (RFC 9457) with ``reason`` and ``decision``; the challenge comes from
``core.challenge``, and the CORS fields, with which a browser's code may read the refusal, from ``core.cors``. Nothing
repeats what the client sent, except an origin that the configuration lists.
"""

from __future__ import annotations

import json
from typing import Final

from proxy.core.challenge import Challenges
from proxy.core.cors import NO_CORS, CorsPolicy, CorsSites
from proxy.core.reasons import TABLE, Reason
from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.date import HttpClock

_RETRY_AFTER_SECONDS: Final = 1
_PHRASES: Final = {
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    508: b"Loop Detected",
}


class Responder:
    """Builds refusals with these challenges. ``cors`` has the CORS policies of sites and routes."""

    def __init__(self, *, challenges: Challenges, cors: CorsSites = NO_CORS) -> None:
        self._challenges = challenges
        self.cors = cors
        self._clock = HttpClock()

    def refusal(self, x: Exchange, reason: Reason) -> bytes:
        """The complete response to ``x`` for ``reason``: head and body (no body for HEAD)."""
        entry = TABLE[reason]
        decision = x.request_id.decode("ascii")
        body = json.dumps(
            {
                "type": "about:blank",
                "title": entry.title,
                "status": entry.status,
                "detail": entry.detail,
                "reason": entry.public,
                "decision": decision,
            }
        ).encode("ascii")
        lines = [
            b"HTTP/1.1 %d %s\r\n" % (entry.status, _PHRASES[entry.status]),
            self._clock.date_line() + b"\r\n",
            b"Content-Type: application/problem+json\r\nCache-Control: no-store\r\n",
            b"Content-Length: %d\r\nX-Request-Id: %s\r\n" % (len(body), x.request_id),
        ]
        for value in self._challenges.values(entry.challenge, x.match):
            lines.append(b"WWW-Authenticate: " + value + b"\r\n")
        cors = x.cors
        if cors is not None:
            policy = self.cors.policy(x.match, x.host_name)
            if policy is not None:
                added = policy.response_lines(cors.origin)
                if added:
                    lines.append(added[2:] + b"\r\n")
        if entry.retry:
            lines.append(b"Retry-After: %d\r\n" % _RETRY_AFTER_SECONDS)
        if reason is Reason.METHOD_REFUSED:
            lines.append(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n")
        if not x.keep_alive:
            lines.append(b"Connection: close\r\n")
        elif not x.version:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        if not x.head_only:
            lines.append(body)
        return b"".join(lines)

    def preflight(self, x: Exchange, policy: CorsPolicy, origin: bytes) -> bytes:
        """The complete response to the preflight ``x`` of ``origin``, which the policy allows."""
        lines = [
            b"HTTP/1.1 204 No Content\r\n",
            self._clock.date_line() + b"\r\n",
            b"X-Request-Id: " + x.request_id,
            policy.preflight_lines(origin) + b"\r\n",
        ]
        if not x.keep_alive:
            lines.append(b"Connection: close\r\n")
        elif not x.version:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)
