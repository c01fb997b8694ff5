"""Request parsing: reads body and query into the models of an operation.

Rules of this module:
1. A body is JSON with ``Content-Type: application/json``, which no form of a web page can send.
2. At most 64 KiB of it are read, in ``BODY_SECONDS``.
3. A name that is given twice, in the body or the query, is refused: two parsers could use different values.
4. All errors in body and query are reported at once; an unknown name is repeated only when it is harmless.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any, Final, TypeVar, get_origin

from aiohttp import web
from pydantic import ValidationError

from proxy.control.connections import Connection
from proxy.control.models import Query, RequestModel, plain
from proxy.control.problems import ProblemKind, RequestRefused, invalid

BODY_LIMIT: Final = 64 * 1024
BODY_SECONDS: Final = 10.0
KEY_HEADER: Final = "Idempotency-Key"

_NOT_JSON: Final = ProblemKind(status=400, reason="request_malformed", title="The body is not a JSON object")
_TWICE: Final = ProblemKind(status=400, reason="request_malformed", title="The body names a field twice")
_MEDIA: Final = ProblemKind(status=415, reason="media_type", title="The body must be application/json")
_SLOW: Final = ProblemKind(status=408, reason="request_timeout", title="The body did not arrive in time")
_LEFT: Final = ProblemKind(status=499, reason="client_left", title="The client left before its body was complete")
_KEY: Final = ProblemKind(
    status=400,
    reason="idempotency_key",
    title="An Idempotency-Key is given once and has 1 to 255 visible ASCII characters",
)
_HARMLESS: Final = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_KEY_FORM: Final = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)

_Body = TypeVar("_Body", bound=RequestModel)
_Query = TypeVar("_Query", bound=Query)
Faults = list[tuple[str, str]]


async def read(request: web.Request, body: type[_Body], query: type[_Query]) -> tuple[_Body, _Query]:
    """Read body and query into their models. Raises RequestRefused with every invalid field, and 413."""
    faults: Faults = []
    values = _query(request, query, faults)
    content = await _body(request, body, faults)
    if faults or values is None or content is None:
        raise invalid(faults)
    return content, values


def idempotency_key(request: web.Request) -> str:
    """The ``Idempotency-Key`` of the request, or "". Raises RequestRefused."""
    given = request.headers.getall(KEY_HEADER, [])
    if not given:
        return ""
    if len(given) > 1 or _KEY_FORM.fullmatch(given[0]) is None:
        raise RequestRefused(_KEY)
    return given[0]


async def _body(request: web.Request, model: type[_Body], faults: Faults) -> _Body | None:
    connection = request.protocol if isinstance(request.protocol, Connection) else None
    if connection is not None:
        connection.receiving()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await request.read()
    except TimeoutError:
        raise RequestRefused(_SLOW) from None
    except ConnectionError:
        # Nobody reads this answer; it is logged and counted like others.
        raise RequestRefused(_LEFT) from None
    if connection is not None:
        connection.processing()
    if raw and (request.content_type != "application/json" or "Content-Encoding" in request.headers):
        raise RequestRefused(_MEDIA)
    try:
        content = model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        if any(item["type"] in ("json_invalid", "model_type") and not item["loc"] for item in problems):
            raise RequestRefused(_NOT_JSON) from None
        _refuse_duplicates(raw)
        faults += _plain(problems)
        return None
    _refuse_duplicates(raw)
    return content


def _refuse_duplicates(raw: bytes) -> None:
    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(members)
        if len(document) != len(members):
            raise RequestRefused(_TWICE)
        return document

    try:
        json.loads(raw or b"{}", object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise RequestRefused(_NOT_JSON) from None


def _query(request: web.Request, model: type[_Query], faults: Faults) -> _Query | None:
    values: dict[str, object] = {}
    before = len(faults)
    for name in dict.fromkeys(request.query):
        given = request.query.getall(name)
        field = model.model_fields.get(name)
        if field is None:
            faults.append((name if _HARMLESS.fullmatch(name) else "query", "there is no such parameter"))
        elif get_origin(field.annotation) is tuple:
            values[name] = tuple(given)
        elif len(given) > 1:
            faults.append((name, "the parameter is given twice"))
        else:
            values[name] = given[0]
    try:
        query = model.model_validate(values)
    except ValidationError as error:
        faults += _plain(error.errors(include_url=False, include_input=False))
        return None
    return query if len(faults) == before else None


def _plain(problems: Sequence[Any]) -> Faults:
    # pydantic does not count invalid items, so a list with one invalid item would also be reported as too short.
    places = [item["loc"] for item in problems]
    return [
        (_place(item["loc"]), plain(item))
        for item in problems
        if item["type"] != "too_short"
        or not any(len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"] for place in places)
    ]


def _place(location: tuple[int | str, ...]) -> str:
    out = ""
    for part in location:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            name = part if _HARMLESS.fullmatch(part) else "?"
            out += f".{name}" if out else name
    return out or "body"
