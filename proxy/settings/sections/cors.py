"""CORS: which pages of other origins may call the backends from a browser."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from proxy.core.request.cors import ANY_ORIGIN
from proxy.settings.names import HostPattern, Method
from proxy.settings.section import Section
from proxy.settings.values import Duration, quoted

_ORIGIN: Final = re.compile(
    r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
)
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_DEFAULT_PORTS: Final = (("http://", ":80"), ("https://", ":443"))
_DAY: Final = 86400.0


def _origin(text: str) -> str:
    if text in (ANY_ORIGIN, "null"):
        return text
    if len(text) > 255 or _ORIGIN.fullmatch(text) is None:
        raise ValueError(
            f"{quoted(text)} is not an origin as browsers send it; write https://app.example.com, in lower case, "
            "with a port if it is not the usual one, and without a path"
        )
    if any(text.startswith(scheme) and text.endswith(port) for scheme, port in _DEFAULT_PORTS):
        raise ValueError(f"{quoted(text)} never matches: browsers leave out the usual port")
    return text


def _field_name(text: str) -> str:
    if _FIELD_NAME.fullmatch(text) is None:
        raise ValueError(f"{quoted(text)} is not a header name")
    if text == "*":
        raise ValueError("must name the headers: browsers do not count Authorization among *")
    return text


Origin = Annotated[str, AfterValidator(_origin)]
FieldName = Annotated[str, AfterValidator(_field_name)]


class Cors(Section):
    """What a page of another origin may do."""

    origins: tuple[Origin, ...]
    """Origins whose pages may call, compared exactly; `*` alone: all; `[]`: no CORS, the backend is left to itself."""
    methods: tuple[Method, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
    """Methods that the answer to a preflight allows."""
    headers: tuple[FieldName, ...] | None = None
    """Request headers that the answer allows; `null`: `Content-Type` and the headers that hold a token."""
    expose: tuple[FieldName, ...] = ("WWW-Authenticate", "X-Request-Id", "Retry-After")
    """Response headers that a page may read."""
    credentials: bool = False
    """Let browsers send cookies and stored logins; a token in a header needs no `true`."""
    max_age: Annotated[Duration, Field(ge=0.0, le=_DAY)] = 600.0
    """How long a browser may remember the answer to a preflight."""
    preflight: Literal["answer", "pass"] = "answer"
    """`answer`: patgate answers preflights and sets CORS headers; `pass`: the backend does both, without identity."""


class SiteCors(Cors):
    """What a page of another origin may do on a site."""

    host: HostPattern | None = None
    """Only requests for this Host: a name, or `*.example.com`; `null`: any."""
