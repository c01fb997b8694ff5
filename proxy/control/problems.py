"""Error responses: every error of the control plane as ``application/problem+json`` (RFC 9457).

Rules of this module:
1. Each error class has one row in the table; nothing else maps an error to a status.
2. ``reason`` is a code for programs, ``detail`` a sentence for people; neither repeats what was sent.
3. ``errors`` names all invalid fields at once: ``[{"field", "problem"}]``.
4. ``decision`` is our id of the request, which the log and the audit log have too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from aiohttp import web

from proxy.core.errors import (
    AuthorityOverloaded,
    AuthorityUnavailable,
    Conflict,
    DataDirLost,
    Forbidden,
    InDoubt,
    Invalid,
    NotFound,
    OutcomeUnknown,
    PatgateError,
    StoreUnavailable,
    Unauthenticated,
)
from proxy.core.reasons import Challenge

CONTENT_TYPE: Final = "application/problem+json"
RETRY_AFTER: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemKind:
    """What all refusals of one kind have in common. ``challenge`` is the kind of ``WWW-Authenticate``."""

    status: int
    reason: str
    title: str
    challenge: Challenge = Challenge.NONE


_KINDS: Final[Mapping[type[PatgateError], ProblemKind]] = MappingProxyType(
    {
        NotFound: ProblemKind(status=404, reason="not_found", title="There is no such thing"),
        Conflict: ProblemKind(status=409, reason="conflict", title="The current state does not allow this"),
        Invalid: ProblemKind(status=422, reason="invalid", title="A field cannot be accepted"),
        Forbidden: ProblemKind(
            status=403, reason="forbidden", title="This is not permitted", challenge=Challenge.INSUFFICIENT_SCOPE
        ),
        Unauthenticated: ProblemKind(
            status=401, reason="invalid_token", title="Token not accepted", challenge=Challenge.INVALID_TOKEN
        ),
        # Each before its base class.
        InDoubt: ProblemKind(status=503, reason="in_doubt", title="It is in doubt whether this was done"),
        OutcomeUnknown: ProblemKind(
            status=503, reason="outcome_unknown", title="It is not known whether this was done"
        ),
        DataDirLost: ProblemKind(status=503, reason="store_lost", title="The store is gone"),
        StoreUnavailable: ProblemKind(status=503, reason="store_unavailable", title="The store cannot be used now"),
        AuthorityOverloaded: ProblemKind(status=503, reason="overloaded", title="Too many requests are waiting"),
        AuthorityUnavailable: ProblemKind(status=503, reason="unavailable", title="This cannot be answered now"),
    }
)
_HTTP: Final[Mapping[int, ProblemKind]] = MappingProxyType(
    {
        404: ProblemKind(status=404, reason="not_found", title="There is no such resource"),
        405: ProblemKind(status=405, reason="method_not_allowed", title="The resource does not have this method"),
        413: ProblemKind(status=413, reason="body_too_large", title="The body is larger than 64 KiB"),
        417: ProblemKind(
            status=417, reason="expectation_failed", title="100-continue is the only expectation that can be met"
        ),
    }
)
_OTHER: Final = ProblemKind(status=400, reason="request_malformed", title="The request cannot be understood")
_DEFECT: Final = ProblemKind(
    status=500, reason="defect", title="This failed because of a defect of patgate, which has been logged"
)
INVALID: Final = _KINDS[Invalid]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The contents of one refusal.

    ``errors`` are fields and their problems, ``scope`` the missing permission, ``retry_after`` whole seconds, ``allow``
    the allowed methods. ``because`` and ``prefix`` are for the log only: the internal reason and the token's public
    prefix.
    """

    kind: ProblemKind
    detail: str = ""
    errors: tuple[tuple[str, str], ...] = ()
    scope: str = ""
    retry_after: int | None = None
    allow: str = ""
    because: str = ""
    prefix: str = ""


class RequestRefused(Exception):
    """A request that is refused before it reaches a service: not JSON, another media type, no credential."""

    def __init__(
        self,
        kind: ProblemKind,
        detail: str = "",
        errors: Sequence[tuple[str, str]] = (),
        *,
        retry_after: int | None = None,
        because: str = "",
        prefix: str = "",
    ) -> None:
        super().__init__(kind.title)
        self.refusal = Refusal(
            kind=kind, detail=detail, errors=tuple(errors), retry_after=retry_after, because=because, prefix=prefix
        )


def refusal_of(error: Exception) -> Refusal | None:
    """The refusal for an error; None for a defect."""
    if isinstance(error, RequestRefused):
        return error.refusal
    if isinstance(error, Forbidden):
        return Refusal(kind=_KINDS[Forbidden], detail=str(error), errors=error.errors, scope=error.permission)
    if isinstance(error, Invalid):
        return Refusal(kind=_KINDS[Invalid], detail=_summary(error.errors), errors=error.errors)
    if isinstance(error, Unauthenticated):
        # The same text as for a token that was refused before it reached a service.
        return Refusal(kind=_KINDS[Unauthenticated], detail="The token presented is not valid here.")
    for kind, row in _KINDS.items():
        if isinstance(error, kind):
            return Refusal(kind=row, detail=str(error))
    if isinstance(error, web.HTTPException) and error.status >= 400:
        return Refusal(kind=_HTTP.get(error.status, _OTHER), allow=error.headers.get("Allow", ""))
    return None


MALFORMED: Final = Refusal(kind=_OTHER)
DEFECT: Final = Refusal(kind=_DEFECT)


def invalid(errors: Sequence[tuple[str, str]]) -> RequestRefused:
    """The refusal for invalid fields."""
    return RequestRefused(INVALID, _summary(errors), errors)


def _summary(errors: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{field}: {text}" for field, text in errors[:3])


def problem(refusal: Refusal, *, realm: str = "", decision: str = "") -> web.Response:
    """The response for a refusal. ``realm`` is the brand; without it there is no challenge."""
    kind = refusal.kind
    document: dict[str, object] = {
        "type": "about:blank",
        "title": kind.title,
        "status": kind.status,
        "detail": refusal.detail or kind.title,
        "reason": kind.reason,
    }
    if decision:
        document["decision"] = decision
    if refusal.errors:
        document["errors"] = [{"field": field, "problem": text} for field, text in refusal.errors]
    headers = {"Cache-Control": "no-store"}
    if refusal.retry_after is not None or kind.status == 503:
        headers["Retry-After"] = str(refusal.retry_after or RETRY_AFTER)
    if refusal.allow:
        headers["Allow"] = refusal.allow
    challenge = _challenge(refusal, realm)
    if challenge:
        headers["WWW-Authenticate"] = challenge
    return web.Response(status=kind.status, text=json.dumps(document), content_type=CONTENT_TYPE, headers=headers)


def _challenge(refusal: Refusal, realm: str) -> str:
    """The value of ``WWW-Authenticate`` (RFC 6750 section 3): Basic is never offered here."""
    kind = refusal.kind.challenge
    if not realm or kind is Challenge.NONE or (kind is Challenge.INSUFFICIENT_SCOPE and not refusal.scope):
        return ""
    value = f'Bearer realm="{realm}"'
    if kind is not Challenge.CREDENTIAL:
        value += f', error="{kind.value}"'
    return f'{value}, scope="{refusal.scope}"' if refusal.scope else value
