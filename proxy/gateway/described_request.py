"""Reading a forward-auth call: the method, target and host of the request that an ingress asks about.

Rules of this module:
1. Each shape (the path of the call) reads its own header fields. Each of them must occur exactly once and be valid.
2. A client can add the fields that its ingress does not set. So a call in which ``X-Original-URL`` describes another
   request than the shape's own fields is refused, and a call by ``X-Original-URL`` is refused if another target or
   method is described beside it.
3. Nothing here decides about a request: the described target passes the same phases as a proxied one.
4. No function here raises or keeps state.

What each ingress sends is in docs/ingress.md. nginx's ``auth_request`` turns every status but 2xx, 401 and 403 into
500: the shapes of ingresses that use it are ``bounded``, and a refusal carries its status in a header instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from proxy.core.reasons import Reason
from proxy.core.request.request_reading import TOKEN, host_name, only_value

METHOD_FIELD: Final = b"method"
PATH_FIELD: Final = b"path"
URL_FIELD: Final = b"x-original-url"
DESCRIBING_FIELDS: Final = (URL_FIELD, PATH_FIELD, METHOD_FIELD)
"""Fields that describe a request only at the forward-auth listener, beside ``parse.FORWARDED_FIELDS``."""

Fields = list[tuple[bytes, bytes]]


class Family(NamedTuple):
    """The header fields in which an ingress describes a request.

    ``host`` is b"" where the host is that of the call itself; ``absolute``: ``target`` has a URL, which has the host.
    """

    method: bytes
    target: bytes
    host: bytes
    absolute: bool


class Shape(NamedTuple):
    """What a call at one path contains.

    ``bounded``: the ingress understands only the statuses 2xx, 401 and 403. ``fixed_query``: no client can add to the
    query of the call, which therefore has a requirement or is empty; elsewhere it is ignored.
    """

    families: tuple[Family, ...]
    bounded: bool
    fixed_query: bool


class Described(NamedTuple):
    """The request that a call is about; ``query`` includes its "?"."""

    method: bytes
    path: bytes
    query: bytes
    host: str


_ORIGINAL: Final = Family(b"x-original-method", b"x-original-uri", b"", absolute=False)
_URL: Final = Family(b"x-original-method", URL_FIELD, b"", absolute=True)
_FORWARDED: Final = Family(b"x-forwarded-method", b"x-forwarded-uri", b"x-forwarded-host", absolute=False)
_FABRIC: Final = Family(METHOD_FIELD, PATH_FIELD, b"", absolute=False)

_REQUIRE: Final = b"/require/"
ENVOY: Final = b"/envoy"
"""The prefix of the original path: Envoy repeats the request itself, without its body."""
_ENVOYS: Final = ENVOY + b"/"
SHAPES: Final[Mapping[bytes, Shape]] = {
    b"/nginx": Shape((_ORIGINAL,), bounded=True, fixed_query=True),
    b"/ingress-nginx": Shape((_URL,), bounded=True, fixed_query=True),
    b"/nginx-gateway-fabric": Shape((_FABRIC,), bounded=True, fixed_query=True),
    b"/traefik": Shape((_FORWARDED,), bounded=False, fixed_query=True),
    b"/caddy": Shape((_FORWARDED,), bounded=False, fixed_query=False),
    b"/haproxy": Shape((_FORWARDED,), bounded=False, fixed_query=True),
    b"/": Shape((_ORIGINAL, _URL, _FORWARDED), bounded=False, fixed_query=False),
}

_URI: Final = re.compile(rb"(/[\x21-\x3e\x40-\x7e\x80-\xff]*+)(\?[\x21\x22\x24-\x7e]*+)?")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]++)(/[\x21-\x3e\x40-\x7e\x80-\xff]*+)(\?[\x21\x22\x24-\x7e]*+)?")
_FIRST_LINE: Final = re.compile(rb"(?:\r?\n)*+[^ \r\n]++ (/[^ ?\r\n]*+)")
_TARGETS_BESIDE_URL: Final = (b"x-original-uri", b"x-forwarded-uri")
_METHOD_BESIDE_URL: Final = b"x-forwarded-method"


def split_requirement(path: bytes) -> tuple[bytes | None, bytes]:
    """The text of a requirement at the beginning of a call's path, and the path behind it: ``/require/…/nginx``."""
    if not path.startswith(_REQUIRE):
        return None, path
    text, slash, rest = path[len(_REQUIRE) :].partition(b"/")
    return text, slash + rest


def is_bounded(path: bytes) -> bool:
    """Whether the ingress that calls at ``path`` understands only the statuses 2xx, 401 and 403."""
    shape = SHAPES.get(split_requirement(path)[1])
    return shape is not None and shape.bounded


def envoys_path(path: bytes) -> bytes | None:
    """The original path in the path of a call by Envoy; None if this is not one."""
    return path[len(ENVOY) :] if path.startswith(_ENVOYS) else None


def path_of_head(head: bytes) -> bytes:
    """The path, without a query, in the first line of ``head``, which may be malformed or incomplete."""
    found = _FIRST_LINE.match(head)
    return b"" if found is None else found[1]


def read_call(shape: Shape, fields: Fields, host: str, longest: int) -> Described | Reason:
    """The request that ``fields`` describe, or the reason to refuse the call.

    ``host`` is the host name of the call itself. ``longest`` is the limit for the method and the target in bytes.
    """
    # Unpacking a tuple costs less than reading its members by name.
    families, _, _ = shape
    family = families[0] if len(families) == 1 else _family(families, fields)
    if family is None:
        return Reason.FORWARDED_INVALID
    method_field, target_field, host_field, absolute = family
    method, target = only_value(fields, method_field), only_value(fields, target_field)
    if method is None or target is None or (method != b"GET" and TOKEN.fullmatch(method) is None):
        return Reason.FORWARDED_INVALID
    if absolute:
        return _by_url(fields, method, target, longest)
    if len(method) + len(target) > longest:
        return Reason.TARGET_TOO_LONG
    uri = _URI.fullmatch(target)
    if uri is None:
        return Reason.FORWARDED_INVALID
    if host_field:
        value = only_value(fields, host_field)
        name = None if value is None else host_name(value)
        if name is None:
            return Reason.FORWARDED_INVALID
        host = name
    if differs(fields, target, host):
        return Reason.FORWARDED_INVALID
    return Described(method, uri[1], uri[2] or b"", host)


def differs(fields: Fields, target: bytes, host: str) -> bool:
    """Whether a field ``X-Original-URL`` names another target (path and query) or host than these."""
    for name, value in fields:
        if name == URL_FIELD:
            url = _ABSOLUTE.fullmatch(value)
            if url is None or url[2] + (url[3] or b"") != target or host_name(url[1]) != host:
                return True
    return False


def _by_url(fields: Fields, method: bytes, url: bytes, longest: int) -> Described | Reason:
    parts = _ABSOLUTE.fullmatch(url)
    if parts is None:
        return Reason.FORWARDED_INVALID
    path, query = parts[2], parts[3] or b""
    if len(method) + len(path) + len(query) > longest:
        return Reason.TARGET_TOO_LONG
    name = host_name(parts[1])
    if name is None:
        return Reason.FORWARDED_INVALID
    target = path + query
    for field, value in fields:
        if (field in _TARGETS_BESIDE_URL and value != target) or (field == _METHOD_BESIDE_URL and value != method):
            return Reason.FORWARDED_INVALID
    return Described(method, path, query, name)


def _family(families: tuple[Family, ...], fields: Fields) -> Family | None:
    """Which of the families of a shape a call uses; None where more than one is present, or none."""
    present = {name for name, _ in fields}
    found = [family for family in families if family.target in present]
    # A method without a target is half of a description, by the client or by the ingress.
    methods = {family.method for family in families if family.method in present}
    if len(found) != 1 or methods != {found[0].method}:
        return None
    return found[0]
