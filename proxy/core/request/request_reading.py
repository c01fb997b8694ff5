"""Reading a request: finds the route of a method, host and target, for the gateway and ``patgate explain`` alike.

1. Only this module checks paths (docs/threat-model.md §1); the backend gets exactly the bytes that were checked.
2. Methods are case-sensitive (RFC 9110 section 9.1). Some backends ignore case, so a method that is not in capitals is
   refused.
3. Every repetition is possessive or separated by a byte that it cannot contain, so matching is linear in the input.
4. No function here raises or keeps state.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from proxy.core.model import Access
from proxy.core.reasons import TABLE, Reason
from proxy.core.request.query import QueryReading
from proxy.core.request.target import PathAllowance, canonical_path, split_target, without_prefix
from proxy.core.routes import Match, RouteTable

TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
"""A method or a field name (RFC 9110 section 5.6.2)."""

_METHODS: Final = {name.encode("ascii"): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
# Looking a member up in its enumeration costs more than the comparison with it.
_DENIED: Final = Access.DENIED
_EMPTY_SEGMENT: Final = int(PathAllowance.EMPTY_SEGMENT)
_REFUSED_METHODS: Final = frozenset((b"CONNECT", b"TRACE"))
_REPORTABLE: Final = frozenset((401, 403))

_QUERY: Final = bytes([byte ^ (not 0x21 <= byte <= 0x7E or byte == 0x23) for byte in range(256)])
"""A translation that changes "#" and every byte outside visible ASCII."""
_NOT_IN_LINE: Final = re.compile(rb"[\x00-\x20\x7f]")

_LABEL: Final = rb"[A-Za-z0-9_~\-]{1,63}+"
_HOST: Final = re.compile(
    rb"(" + _LABEL + rb"(?:\." + _LABEL + rb")*+\.?|\[[0-9A-Fa-f:.]{2,45}+\])(?::(0|[1-9][0-9]{0,4})?)?"
)
_NUMERIC: Final = re.compile(rb"(?:.*\.)?(?:[0-9]++|0[Xx][0-9A-Fa-f]*+)\.?", re.DOTALL)
"""A name that ends in a number: resolvers read such a name as an IPv4 address, in several forms."""
_HIGHEST_PORT: Final = 65535
_NAME_LIMIT: Final = 255
_HOST_LIMIT: Final = _NAME_LIMIT + len(":65535")


def judge(
    table: RouteTable, method: bytes, host: str, path: bytes, query: bytes | None
) -> tuple[Match | None, Reason | None]:
    """The match for a method, a host name, an origin-form path and its query, and the reason of a refusal.

    ``query`` is empty or begins with "?"; None: it is unknown whether the backend reads it. Refuses an ambiguous
    target, a target without a route, and a route with access ``denied``. A refusal has a match if a route caused it;
    without a refusal there is always a match.
    """
    if method in _REFUSED_METHODS:
        return None, Reason.METHOD_REFUSED
    judged = canonical_path(path)
    if judged is None:
        return None, Reason.TARGET_NOT_CANONICAL
    text, needs = judged
    name = _METHODS.get(method)
    if name is None:
        if method != method.upper():
            return None, Reason.METHOD_REFUSED
        name = method.decode("ascii")
    match = table.match(name, host, text)
    if match is None:
        return None, Reason.TARGET_NOT_CANONICAL if needs else Reason.NO_ROUTE
    route = match.route
    if route.query:
        match, reason = _by_query(table.matches(name, host, text), query)
        if reason is not None:
            return match, reason
        if match is None:
            return None, Reason.TARGET_NOT_CANONICAL if needs else Reason.NO_ROUTE
        route = match.route
    if needs:
        if needs & ~route.allow:
            return match, Reason.TARGET_NOT_CANONICAL
        # What is left must not begin with "//", which is a host to some readers (RFC 3986 section 4.2).
        if route.prefix and needs & _EMPTY_SEGMENT and without_prefix(path, route.prefix).startswith(b"//"):
            return match, Reason.TARGET_NOT_CANONICAL
    if route.access is _DENIED:
        return match, Reason.ROUTE_DENIED
    return match, None


def _by_query(matches: tuple[Match, ...], query: bytes | None) -> tuple[Match | None, Reason | None]:
    """The first match whose conditions on the query are met; a refusal where that cannot be decided."""
    reading = None
    for match in matches:
        conditions = match.route.query
        if not conditions:
            return match, None
        if query is None:
            return match, Reason.QUERY_AMBIGUOUS
        if reading is None:
            reading = QueryReading(query)
        met = reading.meets(conditions)
        if met is None:
            return match, Reason.QUERY_AMBIGUOUS
        if met:
            return match, None
    return None, None


def only_reported(match: Match, reason: Reason) -> bool:
    """Whether a refusal of a token is only counted and logged, because the route is report-only."""
    return not match.route.enforce and TABLE[reason].status in _REPORTABLE


def is_query(query: bytes) -> bool:
    """Whether a query, including its "?", is visible ASCII without "#"."""
    return query.translate(_QUERY) == query


def is_connect(method: bytes) -> bool:
    """Whether a method is CONNECT in any letter case; the bytes after it may not be HTTP."""
    return len(method) == 7 and method.upper() == b"CONNECT"


def host_name(authority: bytes) -> str | None:
    """The name in ``Host`` or in the authority of an absolute-form target, in lower case; None if it is invalid.

    Valid are DNS names (RFC 9110 section 7.2, RFC 1035 section 2.3.4): labels of at most 63 bytes, 255 in all, no
    escapes, no user information. A name that ends in a number must be an IPv4 address of four decimal numbers, because
    resolvers differ on ``127.1`` and ``0177.0.0.1``. An IPv6 address is in brackets, without a zone; the result has its
    short form (RFC 5952). A port is a decimal number up to 65535.
    """
    matched = _HOST.fullmatch(authority) if len(authority) <= _HOST_LIMIT else None
    if matched is None or len(matched[1]) > _NAME_LIMIT:
        return None
    if matched[2] is not None and int(matched[2]) > _HIGHEST_PORT:
        return None
    name = matched[1].decode("ascii").lower()
    if name[0] == "[":
        return _bracketed(name)
    if _NUMERIC.fullmatch(matched[1]) is not None:
        try:
            return str(IPv4Address(name))
        except AddressValueError:
            return None
    return name


def _bracketed(name: str) -> str | None:
    """An IPv6 address in brackets in its short form (RFC 5952); None if it is invalid."""
    try:
        address = IPv6Address(name[1:-1])
    except AddressValueError:
        return None
    mapped = address.ipv4_mapped
    # Later versions of Python use this form for a mapped address by themselves.
    return f"[{address}]" if mapped is None else f"[::ffff:{mapped}]"


def other_form(method: bytes, target: bytes, host: bytes) -> bytes | Reason:
    """The path of a target (no query) that does not begin with ``/``, or the reason to refuse it.

    Handles absolute-form, authority-form and asterisk-form (RFC 9112 section 3.2); ``host`` is the value of ``Host``.
    """
    if target == b"*" and method == b"OPTIONS":
        # Well-formed (RFC 9112 section 3.2.4), but it names no resource that a route could match.
        return Reason.NO_ROUTE
    parts = split_target(target)
    if parts is None or parts[0] is None or parts[0].lower() != host.lower():
        return Reason.TARGET_NOT_CANONICAL
    return parts[1]


def read_line(method: bytes, target: bytes, host: bytes, longest: int) -> tuple[str, bytes, bytes] | Reason:
    """The host name, path and query of a request line and its ``Host``, by the rules of ``gateway.phases.parse``.

    An empty ``host`` means no ``Host``; then the host of an absolute-form target is used. ``longest`` is the limit of a
    request line in bytes.
    """
    if len(method) + len(target) + len("  HTTP/1.1") > longest:
        return Reason.TARGET_TOO_LONG
    path, mark, after = target.partition(b"?")
    if not path or _NOT_IN_LINE.search(path) is not None or (mark and not is_query(after)):
        return Reason.REQUEST_MALFORMED
    if TOKEN.fullmatch(method) is None:
        return Reason.REQUEST_MALFORMED
    if is_connect(method):
        return Reason.METHOD_REFUSED
    if not host and not path.startswith(b"/"):
        parts = split_target(path)
        host = b"" if parts is None or parts[0] is None else parts[0]
    name = host_name(host) if host else ""
    if name is None:
        return Reason.HOST_INVALID
    if path.startswith(b"/"):
        return name, path, mark + after
    result = other_form(method, path, host)
    return result if isinstance(result, Reason) else (name, result, mark + after)


def only_value(fields: list[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    """The value of the field that occurs once; None where it is missing or repeated."""
    found: bytes | None = None
    for name, value in fields:
        if name == wanted:
            if found is not None:
                return None
            found = value
    return found
