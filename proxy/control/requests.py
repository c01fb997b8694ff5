"""Reading of requests: bodies into models, queries into checked values.

Rules of this module:
1. A body is JSON and says so (`Content-Type: application/json`): no form of a web page can send one.
2. At most 64 KiB of it are read.
3. What is unknown, in the body or the query, is refused by name only when the name is harmless to repeat.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

from aiohttp import web
from pydantic import ValidationError

from proxy.control.models import Body
from proxy.control.problems import Kind, RequestRefused
from proxy.core.errors import Invalid
from proxy.core.model import TokenStatus
from proxy.services.views import LIMIT_DEFAULT

BODY_LIMIT: Final = 64 * 1024

_NOT_JSON: Final = Kind(status=400, reason="request_malformed", title="The body is not a JSON object")
_MEDIA: Final = Kind(status=415, reason="media_type", title="The body must be application/json")
_INVALID: Final = Kind(status=422, reason="invalid", title="A field cannot be accepted")
_HARMLESS: Final = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)

_Body = TypeVar("_Body", bound=Body)


async def read_body(request: web.Request, model: type[_Body]) -> _Body:
    """The body as `model`.  Raises RequestRefused with every field at fault, and 413."""
    raw = await request.read()
    if raw and request.content_type != "application/json":
        raise RequestRefused(_MEDIA)
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        if any(item["type"] in ("json_invalid", "model_type") and not item["loc"] for item in found):
            raise RequestRefused(_NOT_JSON) from None
        errors = [(_place(item["loc"]), item["msg"]) for item in found]
        detail = "; ".join(f"{field}: {text}" for field, text in errors[:3])
        raise RequestRefused(_INVALID, detail, errors) from None


def read_query(request: web.Request, *known: str) -> dict[str, str]:
    """The query's values by name.  Raises Invalid for a name that is unknown or given twice."""
    values: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise Invalid(name if _HARMLESS.fullmatch(name) else "query", "there is no such parameter")
        if name in values:
            raise Invalid(name, "the parameter is given twice")
        values[name] = value
    return values


def read_limit(values: dict[str, str]) -> int:
    """The page size asked for.  Raises Invalid; the services check the range."""
    text = values.get("limit")
    if text is None:
        return LIMIT_DEFAULT
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Invalid("limit", "a limit is a whole number")
    return int(text)


def read_status(values: dict[str, str]) -> TokenStatus | None:
    """The token status asked for.  Raises Invalid."""
    text = values.get("status")
    if text is None:
        return None
    try:
        return TokenStatus(text)
    except ValueError:
        raise Invalid("status", f"a status is one of {', '.join(TokenStatus)}") from None


def _place(location: tuple[int | str, ...]) -> str:
    out = ""
    for part in location:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            name = part if _HARMLESS.fullmatch(part) else "?"
            out += f".{name}" if out else name
    return out or "body"
