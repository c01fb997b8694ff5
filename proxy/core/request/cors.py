"""Cross-origin requests of browsers (the CORS protocol of the Fetch standard, section 3.2).

Rules of this module:
1. An origin is compared byte for byte with the configured ones. ``null`` is an origin like any other: only where it is
   listed. Nothing else of a request appears in a response.
2. ``*`` never comes with credentials; the configuration refuses the two together.
3. One side owns the ``Access-Control-*`` fields of a route's responses. Where patgate answers preflights it is patgate:
   the backend's are removed and patgate's own are added, once. Where preflights pass it is the backend; patgate then
   adds them to its own refusals only.
4. A response that depends on ``Origin`` says so in ``Vary``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from proxy.core.routes import Match

_OWNED: Final = b"access-control-"
_VARY_ORIGIN: Final = b"\r\nVary: Origin"
ANY_ORIGIN: Final = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class CorsPolicy:
    """What a browser may do from another origin.

    ``origins`` is empty where CORS is off, or holds only ``*`` for every origin. ``max_age`` is in seconds;
    ``answers``: patgate answers preflights and owns the fields.
    """

    origins: frozenset[str]
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    credentials: bool = False
    max_age: int = 0
    answers: bool = True

    def allows(self, origin: bytes | None) -> bool:
        """Whether ``origin``, the value of the field, is one of the configured ones."""
        return origin is not None and (self.for_all or origin.decode("latin-1") in self.origins)

    @property
    def for_all(self) -> bool:
        """Whether every origin is allowed."""
        return ANY_ORIGIN in self.origins

    def response_lines(self, origin: bytes | None) -> bytes:
        """The lines of a response to ``origin`` (None: no origin), each after a CRLF."""
        vary = b"" if self.for_all else _VARY_ORIGIN
        if origin is None or not self.allows(origin):
            return vary
        exposed = f"\r\nAccess-Control-Expose-Headers: {', '.join(self.expose)}" if self.expose else ""
        return self._allow_origin(origin) + exposed.encode("ascii") + vary

    def preflight_lines(self, origin: bytes) -> bytes:
        """The lines of the response to a preflight of ``origin``, which is allowed."""
        lines = f"\r\nAccess-Control-Allow-Methods: {', '.join(self.methods)}"
        if self.headers:
            lines += f"\r\nAccess-Control-Allow-Headers: {', '.join(self.headers)}"
        lines += f"\r\nAccess-Control-Max-Age: {self.max_age}"
        return self._allow_origin(origin) + lines.encode("ascii") + (b"" if self.for_all else _VARY_ORIGIN)

    def _allow_origin(self, origin: bytes) -> bytes:
        named = b"*" if self.for_all else origin
        credentials = b"\r\nAccess-Control-Allow-Credentials: true" if self.credentials else b""
        return b"\r\nAccess-Control-Allow-Origin: " + named + credentials


class CorsRequest:
    """The CORS fields of a request: ``Origin`` and ``Access-Control-Request-Method``.

    ``lines`` are those of the response where patgate owns the fields, once the request has been allowed.
    """

    __slots__ = ("lines", "method", "origin")

    def __init__(self) -> None:
        self.origin: bytes | None = None
        self.method: bytes | None = None
        self.lines: bytes | None = None

    def has_origin(self, value: bytes) -> None:
        """Note an ``Origin``; a second one makes a value that no configuration has."""
        self.origin = value if self.origin is None else self.origin + b", " + value


class CorsSites:
    """The policies of sites by host, in their order; ``on``: some site or route has CORS.

    A host is None for every host, ``*.example.com`` for every host below it, as in ``core.routes``.
    """

    def __init__(self, sites: Iterable[tuple[str | None, CorsPolicy]], routes: Iterable[CorsPolicy | None]) -> None:
        self._sites: Final = tuple(sites)
        policies = [policy for _, policy in self._sites] + [policy for policy in routes if policy is not None]
        self.on: Final = any(policy.origins for policy in policies)
        self.owns: Final = any(policy.origins and policy.answers for policy in policies)

    def policy(self, match: Match | None, host: str) -> CorsPolicy | None:
        """The policy of a request: the route's own, or that of the first site with this host name."""
        policy = None if match is None else match.route.cors
        if policy is None:
            policy = next((policy for rule, policy in self._sites if _fits(rule, host)), None)
        return policy if policy is not None and policy.origins else None


NO_CORS: Final = CorsSites((), ())


def _fits(rule: str | None, host: str) -> bool:
    name = host.removesuffix(".")
    if rule is None:
        return True
    return name.endswith(rule[1:]) and len(name) > len(rule) - 1 if rule.startswith("*.") else name == rule


def owned(kept: bytes, lines: bytes) -> bytes:
    """The field lines of a backend's response (each after a CRLF) with ``lines`` in place of its CORS fields."""
    fields = [line for line in kept.split(b"\r\n") if not line.lower().startswith(_OWNED)]
    if lines.endswith(_VARY_ORIGIN) and any(_varies(line) for line in fields):
        lines = lines.removesuffix(_VARY_ORIGIN)
    return b"\r\n".join(fields) + lines


def _varies(line: bytes) -> bool:
    """Whether a line is a ``Vary`` that names ``Origin`` or everything."""
    name, _, value = line.partition(b":")
    if name.lower() != b"vary":
        return False
    named = {each.strip(b" \t").lower() for each in value.split(b",")}
    return b"origin" in named or b"*" in named
