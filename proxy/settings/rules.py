"""Rules between settings: finds mistakes that no single field shows.

Each rule is a function from settings to violations; ``RULES`` lists them. Rules also run on settings whose invalid
fields were cut out (``holes``) and have their defaults, so that one run reports both kinds of mistakes; a rule skips
what depends on a hole. ``warnings`` reports settings that are valid but probably not intended.
"""

import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations, takewhile
from pathlib import Path
from typing import Final

from proxy.core.identity import IdentityNameError, names_from
from proxy.core.model import Access
from proxy.core.request.claims import fold
from proxy.core.routes import REST, captures
from proxy.settings.addresses import Bind, collides, trusts_everyone
from proxy.settings.model import RouteSettings, Settings, UpstreamTls
from proxy.settings.problems import Loc, path_of, suggestion
from proxy.settings.sources.certificate import validity
from proxy.settings.values import quoted, quoted_path


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleViolation:
    """A broken rule: the setting and the message; ``other`` is the setting that it conflicts with, if any."""

    loc: Loc
    message: str
    other: Loc | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """The settings to check, and the places of the invalid values that were cut out."""

    settings: Settings
    holes: frozenset[Loc] = frozenset()
    upstreams: frozenset[str] | None = None
    """All names of upstreams, including invalid ones; None if the names are unknown."""

    def sound(self, loc: Loc) -> bool:
        """Whether the value at this place is the operator's: no hole at, above or below it."""
        return not any(hole[: len(loc)] == loc or loc[: len(hole)] == hole for hole in self.holes)


def violations(candidate: Candidate) -> Iterator[RuleViolation]:
    """Every broken rule."""
    for rule in RULES:
        yield from rule(candidate)


def _store(candidate: Candidate) -> Iterator[RuleViolation]:
    if candidate.settings.store != "sqlite" and candidate.sound(("store",)):
        yield RuleViolation(loc=("store",), message="must be sqlite: PostgreSQL is not supported yet")


def _listeners(candidate: Candidate) -> Iterator[RuleViolation]:
    listen = candidate.settings.listen
    binds: list[tuple[Loc, Bind]] = [
        (("listen", "proxy", "bind"), listen.proxy.bind),
        (("listen", "control", "bind"), listen.control.bind),
    ]
    if listen.forward_auth is not None:
        binds.append((("listen", "forward_auth", "bind"), listen.forward_auth.bind))
    sound = [(loc, bind) for loc, bind in binds if candidate.sound(loc)]
    for (first, one), (second, two) in combinations(sound, 2):
        if collides(one, two):
            yield RuleViolation(
                loc=second, message=f"uses port {two.port}, which {path_of(first)} uses too", other=first
            )


def _trusted(candidate: Candidate) -> Iterator[RuleViolation]:
    listen = candidate.settings.listen
    loc: Loc
    for loc, networks in (
        (("listen", "proxy", "trusted"), listen.proxy.trusted),
        (("listen", "proxy", "proxy_protocol"), listen.proxy.proxy_protocol),
    ):
        reason = trusts_everyone(networks)
        if reason is not None:
            yield RuleViolation(loc=loc, message=reason)
    if listen.forward_auth is None:
        return
    loc = ("listen", "forward_auth", "trusted")
    reason = trusts_everyone(listen.forward_auth.trusted)
    if reason is not None:
        yield RuleViolation(loc=loc, message=reason)
    elif not listen.forward_auth.trusted and candidate.sound(loc):
        yield RuleViolation(
            loc=loc, message="must list the ingresses that may connect; without it the listener does not start"
        )


def _webhook(candidate: Candidate) -> Iterator[RuleViolation]:
    notices = candidate.settings.notices
    if notices.webhook is not None and notices.secret is None and candidate.sound(("notices",)):
        yield RuleViolation(
            loc=("notices", "webhook"), message="needs notices.secret, with which its notices are signed"
        )


def _files(candidate: Candidate) -> Iterator[RuleViolation]:
    tls = candidate.settings.listen.proxy.tls
    if tls is not None:
        yield from _key_pair(("listen", "proxy", "tls"), tls.certificate, tls.key)
    for name, upstream in candidate.settings.upstreams.items():
        yield from _client_pair(candidate, ("upstreams", name, "tls"), upstream.tls)
        ca = upstream.tls.ca
        loc: Loc = ("upstreams", name, "tls", "ca")
        if ca is None or not candidate.sound(loc):
            continue
        unreadable = _unreadable(ca)
        if unreadable is not None:
            yield RuleViolation(loc=loc, message=unreadable)
            continue
        try:
            ssl.create_default_context(cafile=ca)
        except (ssl.SSLError, OSError):
            yield RuleViolation(loc=loc, message="holds no certificate in PEM form")


def _client_pair(candidate: Candidate, loc: Loc, tls: UpstreamTls) -> Iterator[RuleViolation]:
    if not candidate.sound((*loc, "certificate")) or not candidate.sound((*loc, "key")):
        return
    if tls.certificate is not None and tls.key is not None:
        yield from _key_pair(loc, tls.certificate, tls.key)
    elif tls.certificate is not None:
        yield RuleViolation(loc=(*loc, "certificate"), message="is given without its key")
    elif tls.key is not None:
        yield RuleViolation(loc=(*loc, "key"), message="is given without its certificate")


def _key_pair(loc: Loc, certificate: Path, key: Path) -> Iterator[RuleViolation]:
    missing = [
        RuleViolation(loc=(*loc, name), message=unreadable)
        for name, path in (("certificate", certificate), ("key", key))
        if (unreadable := _unreadable(path)) is not None
    ]
    if missing:
        yield from missing
        return
    try:
        # With an empty password an encrypted key is an error here, instead of a prompt on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        mismatch = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
        why = (
            "belongs to another certificate" if mismatch else "and the certificate are not a PEM pair without password"
        )
        yield RuleViolation(loc=(*loc, "key"), message=f"the key {why}")


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return f"the file {quoted_path(path)} cannot be read: {os.strerror(error.errno or 0)}"


def _upstreams(candidate: Candidate) -> Iterator[RuleViolation]:
    for name, upstream in candidate.settings.upstreams.items():
        loc: Loc = ("upstreams", name)
        servers: dict[str, int] = {}
        for index, server in enumerate(upstream.servers):
            if str(server) in servers and candidate.sound((*loc, "servers")):
                yield RuleViolation(
                    loc=(*loc, "servers", index),
                    message=f"is listed twice, first as servers[{servers[str(server)]}]",
                )
            servers.setdefault(str(server), index)
        tls_given = upstream.tls != UpstreamTls()
        if tls_given and candidate.sound(loc) and all(server.scheme != "https" for server in upstream.servers):
            yield RuleViolation(loc=(*loc, "tls"), message="has no effect, because no server of this upstream is https")


def _routes(candidate: Candidate) -> Iterator[RuleViolation]:
    for index, route in enumerate(candidate.settings.routes):
        loc: Loc = ("routes", index)
        if loc in candidate.holes:
            continue
        yield from _route_upstream(candidate, loc, route)
        if all(candidate.sound((*loc, name)) for name in ("path", "entity", "access", "operations")):
            yield from _route_meaning(loc, route)
        if route.methods is not None and candidate.sound((*loc, "methods")):
            for method in route.operations or ():
                if method not in route.methods:
                    message = f"names {method}, which methods does not list, so it can never match"
                    yield RuleViolation(loc=(*loc, "operations", method), message=message)


def _route_upstream(candidate: Candidate, loc: Loc, route: RouteSettings) -> Iterator[RuleViolation]:
    loc = (*loc, "upstream")
    known = candidate.upstreams
    if not candidate.sound(loc) or known is None:
        return
    if route.upstream is None:
        if route.access is not Access.DENIED and candidate.sound((*loc[:-1], "access")):
            yield RuleViolation(loc=loc, message="is required here, because the route is not denied")
    elif route.upstream not in known:
        message = f"unknown upstream {quoted(route.upstream)}{suggestion(route.upstream, known)}"
        yield RuleViolation(loc=loc, message=message)


def _route_meaning(loc: Loc, route: RouteSettings) -> Iterator[RuleViolation]:
    """A token route needs an entity; on other routes entity and operations have no meaning."""
    if route.access is not Access.TOKEN:
        for name in ("entity", "operations"):
            if getattr(route, name) is not None:
                message = f"has no meaning on a route whose access is {route.access}: no token is checked there"
                yield RuleViolation(loc=(*loc, name), message=message)
        return
    captured = "entity" in captures(route.path)
    if route.entity is None and not captured:
        yield RuleViolation(loc=(*loc, "entity"), message="is required here, because the path has no {entity}")
    elif route.entity is not None and captured:
        yield RuleViolation(loc=(*loc, "entity"), message="conflicts with {entity} in the path; keep one of the two")


def _second_targets(candidate: Candidate) -> Iterator[RuleViolation]:
    """A route can list only headers of ``headers.second_targets``: all others pass anyway."""
    if not candidate.sound(("headers",)):
        return
    known = {fold(name.encode("ascii")) for name in candidate.settings.headers.second_targets}
    for index, route in enumerate(candidate.settings.routes):
        for place, name in enumerate(route.second_targets):
            loc: Loc = ("routes", index, "second_targets", place)
            if fold(name.encode("ascii")) not in known and candidate.sound(loc):
                yield RuleViolation(
                    loc=loc, message=f"{quoted(name)} is not in headers.second_targets, so it passes anyway"
                )


def _unreachable(candidate: Candidate) -> Iterator[RuleViolation]:
    # Compare a route only with those whose literal prefix it shares, so that thousands of routes are fast to check.
    seen: dict[tuple[str, ...], list[int]] = {}
    routes = candidate.settings.routes
    for later, route in enumerate(routes):
        if not all(candidate.sound(("routes", later, name)) for name in ("path", "host", "methods")):
            continue
        segments = tuple(route.path.split("/")[1:])
        shared = (index for length in range(len(segments) + 1) for index in seen.get(segments[:length], ()))
        earlier = min((index for index in shared if _covers(routes[index], route)), default=None)
        if earlier is not None:
            same = "is the same as" if routes[earlier].path == route.path else "is covered by"
            yield RuleViolation(
                loc=("routes", later, "path"),
                message=f"can never match, because it {same} routes[{earlier}].path and the first match wins",
                other=("routes", earlier, "path"),
            )
        literal = tuple(takewhile(lambda segment: segment != REST and not segment.startswith("{"), segments))
        seen.setdefault(literal, []).append(later)


def _covers(first: RouteSettings, second: RouteSettings) -> bool:
    """Whether the first route matches every request that the second one matches."""
    if first.methods is not None and (second.methods is None or not set(second.methods) <= set(first.methods)):
        return False
    return _host_covers(first.host, second.host) and _path_covers(first.path.split("/")[1:], second.path.split("/")[1:])


def _host_covers(first: str | None, second: str | None) -> bool:
    if first is None or first == second:
        return True
    return second is not None and first.startswith("*.") and second.endswith(first[1:])


def _path_covers(first: list[str], second: list[str]) -> bool:
    for mine, theirs in zip(first, second, strict=False):
        if mine == REST:
            return True
        if mine.startswith("{"):
            if theirs in ("", REST):
                return False
        elif mine != theirs:
            return False
    return len(first) == len(second)


def warnings(settings: Settings) -> Iterator[RuleViolation]:
    """Settings that are valid but probably not intended."""
    if settings.notices.webhook is not None and settings.notices.webhook.startswith("http://"):
        message = "notices are sent without encryption, although they contain names of people and tokens"
        yield RuleViolation(loc=("notices", "webhook"), message=message)
    yield from _out_of_date(settings)
    yield from _open_above(settings)


def _out_of_date(settings: Settings) -> Iterator[RuleViolation]:
    """Certificates that have expired or are not valid yet."""
    certificates: list[tuple[Loc, Path | None]] = [
        (("upstreams", name, "tls", "certificate"), upstream.tls.certificate)
        for name, upstream in settings.upstreams.items()
    ]
    if settings.listen.proxy.tls is not None:
        certificates.append((("listen", "proxy", "tls", "certificate"), settings.listen.proxy.tls.certificate))
    now = datetime.now(UTC)
    for loc, path in certificates:
        dates = None if path is None else validity(path)
        if dates is not None and dates.ends < now:
            yield RuleViolation(loc=loc, message=f"the certificate expired on {dates.ends:%Y-%m-%d}")
        elif dates is not None and dates.begins > now:
            yield RuleViolation(loc=loc, message=f"the certificate is not valid before {dates.begins:%Y-%m-%d}")


def _open_above(settings: Settings) -> Iterator[RuleViolation]:
    """Denied routes ``/x/**`` where a later route allows ``/x`` itself."""
    routes = settings.routes
    for index, route in enumerate(routes):
        itself = route.path.removesuffix(f"/{REST}")
        if route.access is not Access.DENIED or itself in (route.path, ""):
            continue
        wanted = route.model_copy(update={"path": itself})
        for place, other in enumerate(routes):
            if _covers(other, wanted) and (place < index or other.access is Access.DENIED):
                # The operator has decided on this path explicitly.
                break
            if place > index and other.access is not Access.DENIED and _lets_some_through(other, wanted):
                message = (
                    f"denies only the paths below {quoted(itself)}, but routes[{place}].path allows {quoted(itself)} "
                    f"itself: add a route that denies it, if that was meant"
                )
                yield RuleViolation(loc=("routes", index, "path"), message=message, other=("routes", place, "path"))
                break


def _lets_some_through(route: RouteSettings, wanted: RouteSettings) -> bool:
    """Whether the route matches the path of ``wanted`` for some hosts and methods."""
    hosts = _host_covers(route.host, wanted.host) or _host_covers(wanted.host, route.host)
    methods = route.methods is None or wanted.methods is None or not set(route.methods).isdisjoint(wanted.methods)
    return hosts and methods and _path_covers(route.path.split("/")[1:], wanted.path.split("/")[1:])


def _no_repeats(candidate: Candidate) -> Iterator[RuleViolation]:
    settings = candidate.settings
    lists: list[tuple[Loc, tuple[str, ...]]] = [(("credentials",), settings.credentials)]
    lists += [(("roles", name), permissions) for name, permissions in settings.roles.items()]
    for index, route in enumerate(settings.routes):
        lists += [(("routes", index, "methods"), route.methods or ()), (("routes", index, "allow"), route.allow)]
    for loc, values in lists:
        for place, value in enumerate(values):
            if value in values[:place] and candidate.sound(loc):
                yield RuleViolation(loc=(*loc, place), message=f"{quoted(value)} is listed twice")


def _identity(candidate: Candidate) -> Iterator[RuleViolation]:
    identity = candidate.settings.identity
    if identity.names is None or not candidate.sound(("identity",)):
        return
    if "preset" in identity.model_fields_set:
        yield RuleViolation(loc=("identity", "names"), message="conflicts with preset; keep one of the two")
    try:
        names_from({field.value: name for field, name in identity.names.items()})
    except IdentityNameError as error:
        yield RuleViolation(loc=("identity", "names"), message=str(error))


def _argon2(candidate: Candidate) -> Iterator[RuleViolation]:
    argon2 = candidate.settings.argon2
    # RFC 9106 §3.1: at least 8 KiB for each lane.
    if argon2.memory < 8 * 1024 * argon2.parallelism and candidate.sound(("argon2",)):
        yield RuleViolation(loc=("argon2", "memory"), message="must be at least 8KiB for each lane of parallelism")


RULES: Final[tuple[Callable[[Candidate], Iterator[RuleViolation]], ...]] = (
    _store,
    _listeners,
    _trusted,
    _files,
    _upstreams,
    _routes,
    _second_targets,
    _unreachable,
    _no_repeats,
    _identity,
    _argon2,
    _webhook,
)
