"""The respond phase: builds every response that the gateway itself produces: refusals, failures, answered preflights.

The body has the format of the route (``refusals``), because many clients show a person only one: by default it is
``application/problem+json`` (RFC 9457). Every format has the reason and the decision's id. The first request of git's
smart HTTP protocol (``…/info/refs?service=git-…``) always gets ``text/plain``: git shows no other type. The challenge
comes from ``core.challenge``, and the CORS fields, with which a browser's code may read the refusal, from
``core.request.cors``. Nothing repeats what the client sent, except an origin that the configuration lists and an entity
in a scope.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from proxy.core.challenge import Challenges, needed_scope
from proxy.core.model import RefusalFormat
from proxy.core.reasons import TABLE, Reason, ReasonEntry
from proxy.core.request.cors import NO_CORS, CorsPolicy, CorsSites
from proxy.gateway.exchange import Exchange
from proxy.gateway.http1.date import HttpClock

_RETRY_AFTER_SECONDS: Final = 1
_MEMO: Final = 1024
"""Kinds of bodies that are remembered; a scope contains an entity, which may be client input."""
_DECISION: Final = b"<the decision's id>"
"""The place of the decision's id in a body that is remembered; no detail and no scope contains these characters."""
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

_MEDIA_TYPES: Final = {
    RefusalFormat.PROBLEM: b"application/problem+json",
    RefusalFormat.TEXT: b"text/plain; charset=utf-8",
    RefusalFormat.JSON: b"application/json",
}

# Codes of the OCI distribution specification and, for 503, of the CNCF implementation of it.
_OCI_CODES: Final = {400: "UNSUPPORTED", 401: "UNAUTHORIZED", 403: "DENIED", 405: "UNSUPPORTED", 503: "UNAVAILABLE"}

_GIT_PATH: Final = b"/info/refs"
_GIT_QUERY: Final = b"?service=git-"


class Responder:
    """Builds refusals with these challenges.

    ``cors`` has the CORS policies of sites and routes. ``refusals`` is the format where there is no route, or one
    without a format of its own.
    """

    def __init__(
        self,
        *,
        challenges: Challenges,
        cors: CorsSites = NO_CORS,
        refusals: RefusalFormat = RefusalFormat.PROBLEM,
    ) -> None:
        self._challenges = challenges
        self.cors = cors
        self._refusals = refusals
        self._clock = HttpClock()
        self._bodies: dict[tuple[RefusalFormat, Reason, str], bytes] = {}
        self._lines: dict[Reason, bytes] = {}

    def refusal(self, x: Exchange, reason: Reason, *, in_fields: bool = False, bounded: bool = False) -> bytes:
        """The complete response to ``x`` for ``reason``: head and body (no body for HEAD).

        ``in_fields``: header fields have the parts of the body and the challenges too, for an ingress that loses these.
        ``bounded``: the status is 403 instead of any but 401, for an ingress that makes an error of every other one.
        """
        entry = TABLE[reason]
        challenges = self._challenges.values(entry.challenge, x.match)
        form = self._format(x)
        body = self._body(form, reason, entry, x.request_id, needed_scope(entry.challenge, x.match))
        status = 403 if bounded and entry.status != 401 else entry.status
        lines = [
            b"HTTP/1.1 %d %s\r\n" % (status, _PHRASES[status]),
            self._clock.date_line() + b"\r\n",
            b"Content-Type: " + _MEDIA_TYPES[form] + b"\r\nCache-Control: no-store\r\n",
            b"Content-Length: %d\r\nX-Request-Id: %s\r\n" % (len(body), x.request_id),
        ]
        for value in challenges:
            lines.append(b"WWW-Authenticate: " + value + b"\r\n")
        cors = x.cors
        if cors is not None:
            policy = self.cors.policy(x.match, x.host_name)
            if policy is not None:
                added = policy.response_lines(cors.origin)
                if added:
                    lines.append(added[2:] + b"\r\n")
        if in_fields:
            lines.append(self._parts(reason, entry, x.request_id, challenges))
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

    def _body(self, form: RefusalFormat, reason: Reason, entry: ReasonEntry, decision: bytes, scope: str) -> bytes:
        """The body of a refusal; what all refusals of a kind have in common is made once."""
        kind = (form, reason, scope)
        common = self._bodies.get(kind)
        if common is None:
            common = _body(form, entry, _DECISION.decode("ascii"), scope)
            if len(self._bodies) < _MEMO:
                self._bodies[kind] = common
        return common.replace(_DECISION, decision)

    def _parts(self, reason: Reason, entry: ReasonEntry, decision: bytes, challenges: Sequence[bytes]) -> bytes:
        """The field lines ``X-Patgate-…``. Each has a name of its own: a variable of nginx 1.22 has one line only."""
        common = self._lines.get(reason)
        if common is None:
            self._lines[reason] = common = _parts(entry)
        lines = [common, b"X-Patgate-Decision: ", decision, b"\r\n"]
        for number, value in enumerate(challenges, 1):
            lines.append(b"X-Patgate-Challenge-%d: %s\r\n" % (number, value))
        return b"".join(lines)

    def _format(self, x: Exchange) -> RefusalFormat:
        """The format of the body for ``x``."""
        if x.path.endswith(_GIT_PATH) and x.query.startswith(_GIT_QUERY):
            return RefusalFormat.TEXT
        match = x.match
        own = None if match is None else match.route.refusals
        return self._refusals if own is None else own

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


def _parts(entry: ReasonEntry) -> bytes:
    """The field lines ``X-Patgate-…`` that all refusals for one reason have."""
    return (
        b"X-Patgate-Status: %d\r\n" % entry.status
        + b"X-Patgate-Title: "
        + entry.title.encode("ascii")
        + b"\r\nX-Patgate-Detail: "
        + entry.detail.encode("ascii")
        + b"\r\nX-Patgate-Reason: "
        + entry.public.encode("ascii")
        + b"\r\n"
    )


def _body(form: RefusalFormat, entry: ReasonEntry, decision: str, scope: str) -> bytes:
    """The body of a refusal that ``scope`` would have prevented; "" for none."""
    if form is RefusalFormat.TEXT:
        return f"{_words(entry, decision, scope)}\n".encode("ascii")
    document: dict[str, object] = {
        "type": "about:blank",
        "title": entry.title,
        "status": entry.status,
        "detail": entry.detail,
        "reason": entry.public,
        "decision": decision,
    }
    if form is RefusalFormat.JSON:
        # npm shows ``error``, Git LFS ``message``; of ``errors``, clients of container registries show ``code`` and
        # ``message``, and cargo ``detail``.
        words = _words(entry, decision, scope)
        code = _OCI_CODES.get(entry.status, "UNKNOWN")
        document |= {"error": words, "message": words, "errors": [{"code": code, "message": words, "detail": words}]}
    return json.dumps(document).encode("ascii")


def _words(entry: ReasonEntry, decision: str, scope: str) -> str:
    """All that a client should show a person, on one line."""
    needed = f" It needs {scope}." if scope else ""
    return f"{entry.detail}{needed} (reason: {entry.public}, decision: {decision})"
