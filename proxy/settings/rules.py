"""Rules between settings: finds mistakes that no single field shows.

Each rule is a function from settings to violations; ``RULES`` lists them. Rules also run on settings whose invalid
fields were cut out (``holes``) and have their defaults, so that one run reports both kinds of mistakes; a rule skips
what depends on a hole. ``warnings`` reports settings that are valid but probably not intended.
"""

from collections.abc import Callable, Iterator
from typing import Final

from proxy.core.identity import IdentityNameError
from proxy.core.model import Access
from proxy.core.request.claims import fold
from proxy.settings.checks import credentials, files, listeners, routes, spellings, stores
from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.compile import identity_names
from proxy.settings.model import Settings
from proxy.settings.problems import Loc, path_of
from proxy.settings.sections.credentials import place_name
from proxy.settings.sections.routes import Identity, RouteSettings
from proxy.settings.sections.upstreams import UpstreamTls
from proxy.settings.values import quoted


def violations(candidate: Candidate) -> Iterator[RuleViolation]:
    """Every broken rule."""
    for rule in RULES:
        yield from rule(candidate)


def _webhook(candidate: Candidate) -> Iterator[RuleViolation]:
    notices = candidate.settings.notices
    if notices.webhook is not None and notices.secret is None and candidate.sound(("notices",)):
        yield RuleViolation(
            loc=("notices", "webhook"), message="needs notices.secret, with which its notices are signed"
        )


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


def warnings(settings: Settings) -> Iterator[RuleViolation]:
    """Settings that are valid but probably not intended."""
    if settings.notices.webhook is not None and settings.notices.webhook.startswith("http://"):
        message = "notices are sent without encryption, although they contain names of people and tokens"
        yield RuleViolation(loc=("notices", "webhook"), message=message)
    yield from stores.unverified(settings)
    yield from files.certificate_dates(settings)
    yield from routes.open_above(settings)
    yield from spellings.denied_in_one_spelling(settings)
    yield from spellings.stripped_for_an_ingress(settings)
    yield from _lent_credentials(settings)


def _lent_credentials(settings: Settings) -> Iterator[RuleViolation]:
    """Routes that let requests without a token pass to upstreams that get a credential: a value from a file."""
    for index, route in enumerate(settings.routes):
        upstream, why = settings.upstreams.get(route.upstream or ""), _without_token(settings, route)
        if upstream is None or not why:
            continue
        lent = next((name for name, value in upstream.set_headers.items() if value.file is not None), None)
        if lent is not None:
            loc: Loc = ("upstreams", str(route.upstream), "set_headers", lent)
            message = f"requests without a token get it too, because routes[{index}] {why}"
            yield RuleViolation(loc=loc, message=message, other=("routes", index))


def _without_token(settings: Settings, route: RouteSettings) -> str:
    """Why a route lets some requests without a token pass to its upstream; "" if it does not."""
    if route.access in (Access.PUBLIC, Access.PASSTHROUGH):
        return f"has access: {route.access}"
    if route.access is not Access.TOKEN:
        return ""
    if not route.enforce:
        return "has enforce: false"
    policies = settings.cors if route.cors is None else (route.cors,)
    return "lets preflights pass" if any(each.origins and each.preflight == "pass" for each in policies) else ""


def _no_repeats(candidate: Candidate) -> Iterator[RuleViolation]:
    settings = candidate.settings
    lists: list[tuple[Loc, tuple[str, ...]]] = [
        (("credentials",), tuple(map(place_name, settings.credentials))),
        (("challenge",), settings.challenge or ()),
    ]
    lists += [(("roles", name), permissions) for name, permissions in settings.roles.items()]
    for index, route in enumerate(settings.routes):
        lists += [(("routes", index, "methods"), route.methods or ()), (("routes", index, "allow"), route.allow)]
        lists += [(("routes", index, "credentials"), tuple(map(place_name, route.credentials or ())))]
        lists += [(("routes", index, "challenge"), route.challenge or ())]
    for loc, values in lists:
        for place, value in enumerate(values):
            if value in values[:place] and candidate.sound(loc):
                yield RuleViolation(loc=(*loc, place), message=f"{quoted(value)} is listed twice")


def _identity(candidate: Candidate) -> Iterator[RuleViolation]:
    for loc, identity in _identities(candidate):
        if identity.names is None:
            continue
        if "preset" in identity.model_fields_set:
            yield RuleViolation(loc=(*loc, "names"), message="conflicts with preset; keep one of the two")
        try:
            identity_names(identity)
        except IdentityNameError as error:
            yield RuleViolation(loc=(*loc, "names"), message=str(error))


def _identities(candidate: Candidate) -> Iterator[tuple[Loc, Identity]]:
    """The identity sections: the global one and those of upstreams."""
    sections: list[tuple[Loc, Identity | None]] = [(("identity",), candidate.settings.identity)]
    sections += [
        (("upstreams", name, "identity"), each.identity) for name, each in candidate.settings.upstreams.items()
    ]
    for loc, identity in sections:
        if identity is not None and candidate.sound(loc):
            yield loc, identity


def _edited_headers(candidate: Candidate) -> Iterator[RuleViolation]:
    """Headers that an upstream sets or removes: each once in any spelling, and none that carries an identity."""
    identities: dict[bytes, Loc] = {}
    for loc, identity in _identities(candidate):
        for name in (identity.names or {}).values():
            identities[fold(name.encode("utf-8"))] = loc
    for upstream, settings in candidate.settings.upstreams.items():
        at: Loc = ("upstreams", upstream)
        named: list[tuple[Loc, str]] = [((*at, "set_headers", name), name) for name in settings.set_headers]
        named += [((*at, "remove_headers", place), name) for place, name in enumerate(settings.remove_headers)]
        first: dict[bytes, Loc] = {}
        for loc, name in named:
            folded = fold(name.encode("ascii"))
            if folded in first and candidate.sound(loc):
                yield RuleViolation(loc=loc, message=f"is the same header as {path_of(first[folded])}")
            if folded in identities and candidate.sound(loc):
                message = f"carries an identity ({path_of(identities[folded])}) and cannot be set or removed"
                yield RuleViolation(loc=loc, message=message)
            first.setdefault(folded, loc)


def _argon2(candidate: Candidate) -> Iterator[RuleViolation]:
    argon2 = candidate.settings.argon2
    # RFC 9106 §3.1: at least 8 KiB for each lane.
    if argon2.memory < 8 * 1024 * argon2.parallelism and candidate.sound(("argon2",)):
        yield RuleViolation(loc=("argon2", "memory"), message="must be at least 8KiB for each lane of parallelism")


RULES: Final[tuple[Callable[[Candidate], Iterator[RuleViolation]], ...]] = (
    stores.stores,
    listeners.binds,
    listeners.trusted_networks,
    listeners.extras,
    listeners.shared_secret,
    files.files,
    _upstreams,
    routes.meanings,
    routes.second_targets,
    credentials.places,
    credentials.cors,
    routes.unreachable,
    _no_repeats,
    _identity,
    _edited_headers,
    _argon2,
    _webhook,
)
