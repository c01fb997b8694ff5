"""The respond phase: builds every response that the gateway itself produces, for refusals and upstream failures.

The body is ``application/problem+json`` (RFC 9457) with ``reason`` and ``decision``; the challenge comes from
``core.challenge``. Neither repeats anything that the client sent. Only for the first request of git's smart HTTP
protocol (``…/info/refs?service=git-…``) the body is ``text/plain``: git shows a person no other type.
"""

from __future__ import annotations

import json
from typing import Final

from proxy.core.challenge import Challenges
from proxy.core.reasons import TABLE, Reason, ReasonEntry
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


_GIT_PATH: Final = b"/info/refs"
_GIT_QUERY: Final = b"?service=git-"


class Responder:
    """Builds refusals. ``realm`` is the brand; ``basic``: challenges offer Basic credentials too."""

    def __init__(self, *, realm: str, basic: bool) -> None:
        self._challenges = Challenges(realm=realm, basic=basic)
        self._clock = HttpClock()

    def refusal(self, x: Exchange, reason: Reason) -> bytes:
        """The complete response to ``x`` for ``reason``: head and body (no body for HEAD)."""
        entry = TABLE[reason]
        decision = x.request_id.decode("ascii")
        challenges = self._challenges.values(entry.challenge, x.match)
        if x.path.endswith(_GIT_PATH) and x.query.startswith(_GIT_QUERY):
            media_type = b"text/plain; charset=utf-8"
            body = _text(entry, decision, challenges)
        else:
            media_type = b"application/problem+json"
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
            b"Content-Type: " + media_type + b"\r\nCache-Control: no-store\r\n",
            b"Content-Length: %d\r\nX-Request-Id: %s\r\n" % (len(body), x.request_id),
        ]
        for value in challenges:
            lines.append(b"WWW-Authenticate: " + value + b"\r\n")
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


def _text(entry: ReasonEntry, decision: str, challenges: tuple[bytes, ...]) -> bytes:
    """The body for a client that shows plain text: one line, with the permission that the challenge names."""
    scope = next((value.partition(b'scope="')[2].partition(b'"')[0] for value in challenges if b"scope=" in value), b"")
    needed = f" It needs {scope.decode('ascii')}." if scope else ""
    return f"{entry.detail}{needed} (reason: {entry.public}, decision: {decision})\n".encode("ascii")
