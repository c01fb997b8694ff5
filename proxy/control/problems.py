"""Errors as `application/problem+json` (RFC 9457), for every answer of the control plane that is not a success.

Rules of this module:
1. An error of the product has one row in the table; nothing else maps an error to a status.
2. `reason` is a code for programs, `detail` a sentence for people; neither repeats what was sent.
3. `errors` names the fields at fault: `[{"field", "problem"}]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from proxy.core.errors import (
    AuthorityOverloaded,
    AuthorityUnavailable,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    PatgateError,
    StoreUnavailable,
    Unauthenticated,
)

CONTENT_TYPE: Final = "application/problem+json"
RETRY_AFTER: Final = "1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    status: int
    reason: str
    title: str


_KINDS: Final[Mapping[type[PatgateError], Kind]] = MappingProxyType(
    {
        NotFound: Kind(status=404, reason="not_found", title="There is no such thing"),
        Conflict: Kind(status=409, reason="conflict", title="The present state does not permit this"),
        Invalid: Kind(status=422, reason="invalid", title="A field cannot be accepted"),
        Forbidden: Kind(status=403, reason="forbidden", title="This is not permitted"),
        Unauthenticated: Kind(status=401, reason="unauthenticated", title="The credential is not accepted"),
        StoreUnavailable: Kind(status=503, reason="store_unavailable", title="The store cannot be used now"),
        AuthorityOverloaded: Kind(status=503, reason="overloaded", title="Too much is waiting already"),
        AuthorityUnavailable: Kind(status=503, reason="unavailable", title="This cannot be answered now"),
    }
)
_HTTP: Final[Mapping[int, Kind]] = MappingProxyType(
    {
        404: Kind(status=404, reason="not_found", title="There is no such resource"),
        405: Kind(status=405, reason="method_not_allowed", title="The resource does not have this method"),
        413: Kind(status=413, reason="body_too_large", title="The body is larger than 64 KiB"),
    }
)
_OTHER: Final = Kind(status=400, reason="request_malformed", title="The request cannot be understood")


class RequestRefused(Exception):
    """A request that does not reach a service: not JSON, of another media type, with fields that do not fit."""

    def __init__(self, kind: Kind, detail: str = "", errors: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(kind.title)
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)


def problem(kind: Kind, detail: str = "", errors: Sequence[tuple[str, str]] = ()) -> web.Response:
    """The one form of an answer that is not a success."""
    document: dict[str, object] = {
        "type": "about:blank",
        "title": kind.title,
        "status": kind.status,
        "detail": detail or kind.title,
        "reason": kind.reason,
    }
    if errors:
        document["errors"] = [{"field": field, "problem": text} for field, text in errors]
    headers = {"Cache-Control": "no-store"}
    if kind.status == 503:
        headers["Retry-After"] = RETRY_AFTER
    return web.Response(status=kind.status, text=json.dumps(document), content_type=CONTENT_TYPE, headers=headers)


@web.middleware
async def as_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into a problem.  Only what is in the tables; a defect stays a 500 and is logged."""
    try:
        return await handler(request)
    except (Invalid, Forbidden) as error:
        return problem(_KINDS[type(error)], str(error), error.errors)
    except tuple(_KINDS) as error:
        return problem(_KINDS[type(error)], str(error))
    except RequestRefused as refused:
        return problem(refused.kind, refused.detail, refused.errors)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = problem(_HTTP.get(error.status, _OTHER))
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
