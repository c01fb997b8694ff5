"""The table of reasons: status, challenge and public text of every decision and failure.

1. Every ``Reason`` has exactly one row in ``TABLE``; nothing else maps a reason to a status or a text.
2. A reason's value is its metric label, its name in the log and its entry in docs/reasons.md.
3. Reasons that a client must not distinguish share one row (``_TOKEN_REFUSED``), so that a response never shows
   whether a token exists (docs/threat-model.md §9). Only log and audit have the actual reason. ``public`` is the
   value of ``reason`` in the response body.
4. Public text never repeats client input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Reason(StrEnum):
    """Why a request was allowed, refused or failed; the value is the metric label."""

    ALLOWED = "allowed"

    REQUEST_MALFORMED = "request_malformed"
    TARGET_NOT_CANONICAL = "target_not_canonical"
    QUERY_AMBIGUOUS = "query_ambiguous"
    HOST_INVALID = "host_invalid"
    CREDENTIAL_MALFORMED = "credential_malformed"
    CREDENTIAL_AMBIGUOUS = "credential_ambiguous"
    FORWARDED_INVALID = "forwarded_invalid"
    REQUIREMENT_INVALID = "requirement_invalid"
    TOKEN_MISPLACED = "token_misplaced"  # noqa: S105 - a reason's name, not a secret
    SECOND_TARGET_INVALID = "second_target_invalid"

    TARGET_TOO_LONG = "target_too_long"
    HEAD_TOO_LARGE = "head_too_large"
    BODY_TOO_LARGE = "body_too_large"
    EXPECTATION_FAILED = "expectation_failed"
    METHOD_REFUSED = "method_refused"
    REQUEST_TIMEOUT = "request_timeout"

    NO_CREDENTIAL = "no_credential"
    CREDENTIAL_UNSUPPORTED = "credential_unsupported"

    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105 - a reason's name, not a secret
    TOKEN_WRONG_SECRET = "token_wrong_secret"  # noqa: S105 - a reason's name, not a secret
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a reason's name, not a secret
    TOKEN_REVOKED = "token_revoked"  # noqa: S105 - a reason's name, not a secret
    OWNER_SUSPENDED = "owner_suspended"
    OWNER_REMOVED = "owner_removed"
    MEMBER_REMOVED = "member_removed"
    ORG_SUSPENDED = "org_suspended"

    ADDRESS_REFUSED = "address_refused"

    ROLE_DENIES = "role_denies"
    SCOPE_DENIES = "scope_denies"

    NO_ROUTE = "no_route"
    ROUTE_DENIED = "route_denied"
    ORG_MISMATCH = "org_mismatch"
    OPERATION_UNMAPPED = "operation_unmapped"
    PEER_UNTRUSTED = "peer_untrusted"
    PEER_SECRET = "peer_secret"  # noqa: S105 - a reason's name, not a secret
    SECOND_TARGET = "second_target"
    ORIGIN_REFUSED = "origin_refused"

    AUTHORITY_UNAVAILABLE = "authority_unavailable"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting_down"

    LOOP_DETECTED = "loop_detected"

    CLIENT_LEFT = "client_left"

    UPSTREAM_UNHEALTHY = "upstream_unhealthy"
    UPSTREAM_REFUSED = "upstream_refused"
    UPSTREAM_RESET = "upstream_reset"
    UPSTREAM_PROTOCOL = "upstream_protocol"
    UPSTREAM_CONNECT_TIMEOUT = "upstream_connect_timeout"
    UPSTREAM_TIMEOUT = "upstream_timeout"


class Challenge(StrEnum):
    """The ``WWW-Authenticate`` challenge of a refusal (RFC 6750 §3)."""

    NONE = "none"
    CREDENTIAL = "credential"
    """Without an error: the schemes in which a credential may be presented."""
    INVALID_REQUEST = "invalid_request"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - RFC 6750 error code
    INSUFFICIENT_SCOPE = "insufficient_scope"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasonEntry:
    """The response for one reason.

    ``status`` is the HTTP status; ``title`` and ``detail`` are the RFC 9457 members; with ``retry`` the response
    carries ``Retry-After``; ``public`` is the body's ``reason`` member.
    """

    status: int
    challenge: Challenge
    title: str
    detail: str
    retry: bool
    public: str


def _entry(
    status: int, challenge: Challenge, title: str, detail: str, *, retry: bool = False, public: str = ""
) -> ReasonEntry:
    return ReasonEntry(status=status, challenge=challenge, title=title, detail=detail, retry=retry, public=public)


_TOKEN_REFUSED: Final = _entry(
    401,
    Challenge.INVALID_TOKEN,
    "Token not accepted",
    "The token presented is not valid here.",
    public="invalid_token",
)

_ROWS: Final[Mapping[Reason, ReasonEntry]] = {
    Reason.ALLOWED: _entry(200, Challenge.NONE, "Allowed", "The request is allowed."),
    # 400: the request itself
    Reason.REQUEST_MALFORMED: _entry(
        400, Challenge.INVALID_REQUEST, "Malformed request", "The request is not valid HTTP/1.1."
    ),
    Reason.TARGET_NOT_CANONICAL: _entry(
        400,
        Challenge.INVALID_REQUEST,
        "Request target not canonical",
        "The request target can be read in more than one way, so it is refused.",
    ),
    Reason.QUERY_AMBIGUOUS: _entry(
        400,
        Challenge.INVALID_REQUEST,
        "Query ambiguous",
        "A query parameter that decides about this request is repeated or spelled in another way, so it is refused.",
    ),
    Reason.HOST_INVALID: _entry(
        400,
        Challenge.INVALID_REQUEST,
        "Invalid host",
        "The request needs exactly one valid Host that its target agrees with.",
    ),
    Reason.CREDENTIAL_MALFORMED: _entry(
        400, Challenge.INVALID_REQUEST, "Malformed credential", "The credential header cannot be read."
    ),
    Reason.CREDENTIAL_AMBIGUOUS: _entry(
        400, Challenge.INVALID_REQUEST, "More than one credential", "A request may carry one credential only."
    ),
    Reason.FORWARDED_INVALID: _entry(
        400,
        Challenge.INVALID_REQUEST,
        "Forwarded request not understood",
        "The headers that describe the original request are missing, repeated or not readable.",
    ),
    Reason.REQUIREMENT_INVALID: _entry(
        400,
        Challenge.INVALID_REQUEST,
        "Requirement not understood",
        "The URL of the forward-auth call has a requirement that cannot be read.",
    ),
    Reason.TOKEN_MISPLACED: _entry(
        400,
        Challenge.INVALID_REQUEST,
        "Token in the wrong place",
        "The request carries a token where this gateway takes none.",
    ),
    Reason.SECOND_TARGET_INVALID: _entry(
        400,
        Challenge.INVALID_REQUEST,
        "Second target not valid",
        "A header names a second resource that is not a path of this host, or names it more than once.",
    ),
    # limits, and refusals that no credential changes
    Reason.TARGET_TOO_LONG: _entry(
        414, Challenge.NONE, "Request target too long", "The request line is longer than this gateway accepts."
    ),
    Reason.HEAD_TOO_LARGE: _entry(
        431, Challenge.NONE, "Request header too large", "The header section is larger than this gateway accepts."
    ),
    Reason.BODY_TOO_LARGE: _entry(
        413, Challenge.NONE, "Request body too large", "The request body is larger than this gateway accepts."
    ),
    Reason.EXPECTATION_FAILED: _entry(
        417, Challenge.NONE, "Expectation failed", "The only expectation that can be met is 100-continue."
    ),
    Reason.METHOD_REFUSED: _entry(405, Challenge.NONE, "Method refused", "This gateway does not serve this method."),
    Reason.REQUEST_TIMEOUT: _entry(408, Challenge.NONE, "Request timeout", "The request did not arrive in time."),
    # 401
    Reason.NO_CREDENTIAL: _entry(401, Challenge.CREDENTIAL, "Credential required", "This resource needs a token."),
    Reason.CREDENTIAL_UNSUPPORTED: _entry(
        401,
        Challenge.CREDENTIAL,
        "Credential not supported",
        "The credential has a scheme that is not accepted here; the challenge names what is.",
    ),
    Reason.TOKEN_UNKNOWN: _TOKEN_REFUSED,
    Reason.TOKEN_WRONG_SECRET: _TOKEN_REFUSED,
    Reason.TOKEN_EXPIRED: _TOKEN_REFUSED,
    Reason.TOKEN_REVOKED: _TOKEN_REFUSED,
    Reason.OWNER_SUSPENDED: _TOKEN_REFUSED,
    Reason.OWNER_REMOVED: _TOKEN_REFUSED,
    Reason.MEMBER_REMOVED: _TOKEN_REFUSED,
    Reason.ORG_SUSPENDED: _TOKEN_REFUSED,
    # 403
    Reason.ADDRESS_REFUSED: _entry(
        403, Challenge.NONE, "Address not permitted", "The token may not be used from the address of this client."
    ),
    Reason.ROLE_DENIES: _entry(
        403, Challenge.INSUFFICIENT_SCOPE, "Not permitted", "The owner's role does not permit this operation."
    ),
    Reason.SCOPE_DENIES: _entry(
        403, Challenge.INSUFFICIENT_SCOPE, "Not permitted", "The token's scopes do not permit this operation."
    ),
    Reason.NO_ROUTE: _entry(403, Challenge.NONE, "No route", "No route is configured for this request."),
    Reason.ROUTE_DENIED: _entry(403, Challenge.NONE, "Route denied", "This route is never open to tokens."),
    Reason.ORG_MISMATCH: _entry(
        403, Challenge.NONE, "Wrong organisation", "The token does not reach the resources of this organisation."
    ),
    Reason.OPERATION_UNMAPPED: _entry(
        403, Challenge.NONE, "Operation not mapped", "This route names no operation for this method."
    ),
    Reason.PEER_UNTRUSTED: _entry(
        403, Challenge.NONE, "Peer not trusted", "This listener answers only the ingress it was configured for."
    ),
    Reason.PEER_SECRET: _entry(
        403, Challenge.NONE, "Peer without the secret", "The call lacks the secret that this listener requires."
    ),
    Reason.SECOND_TARGET: _entry(
        403,
        Challenge.NONE,
        "Second target not permitted",
        "A header names a second resource that this gateway does not let a request name here.",
    ),
    Reason.ORIGIN_REFUSED: _entry(
        403,
        Challenge.NONE,
        "Origin not allowed",
        "Pages of this origin may not call this resource from a browser.",
    ),
    # 503
    Reason.AUTHORITY_UNAVAILABLE: _entry(
        503, Challenge.NONE, "Temporarily unavailable", "Tokens cannot be checked at the moment.", retry=True
    ),
    Reason.OVERLOADED: _entry(
        503, Challenge.NONE, "Overloaded", "This gateway has more work than it can do at the moment.", retry=True
    ),
    Reason.SHUTTING_DOWN: _entry(503, Challenge.NONE, "Shutting down", "This gateway is shutting down.", retry=True),
    # 508: gateways in front of each other form a loop, which a retry does not fix
    Reason.LOOP_DETECTED: _entry(
        508, Challenge.NONE, "Loop detected", "The request has been through this gateway already."
    ),
    # no client is left to read this; the status is for the log, as in nginx
    Reason.CLIENT_LEFT: _entry(
        499, Challenge.NONE, "Client left", "The client closed the connection before its answer."
    ),
    # 502, 503 and 504
    Reason.UPSTREAM_UNHEALTHY: _entry(
        503, Challenge.NONE, "No healthy upstream", "No server of the upstream is healthy at the moment.", retry=True
    ),
    Reason.UPSTREAM_REFUSED: _entry(
        502, Challenge.NONE, "Upstream unreachable", "The upstream does not accept connections."
    ),
    Reason.UPSTREAM_RESET: _entry(
        502, Challenge.NONE, "Upstream closed the connection", "The upstream closed the connection before it answered."
    ),
    Reason.UPSTREAM_PROTOCOL: _entry(
        502, Challenge.NONE, "Upstream answer not valid", "The upstream's answer is not valid HTTP/1.1."
    ),
    Reason.UPSTREAM_CONNECT_TIMEOUT: _entry(
        504, Challenge.NONE, "Upstream connect timeout", "The upstream did not accept the connection in time."
    ),
    Reason.UPSTREAM_TIMEOUT: _entry(504, Challenge.NONE, "Upstream timeout", "The upstream did not answer in time."),
}

TABLE: Final[Mapping[Reason, ReasonEntry]] = MappingProxyType(
    {
        reason: row
        if row.public
        else _entry(row.status, row.challenge, row.title, row.detail, retry=row.retry, public=reason.value)
        for reason, row in _ROWS.items()
    }
)
"""The row of every reason; a test checks that none is missing."""
