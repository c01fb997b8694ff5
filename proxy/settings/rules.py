"""Rules between settings: finds mistakes that no single field shows.

Each rule is a function from settings to violations; ``RULES`` lists them. Rules also run on settings whose invalid
fields were cut out (``holes``) and have their defaults, so that one run reports both kinds of mistakes; a rule skips
what depends on a hole. ``warnings`` reports settings that are valid but probably not intended.
"""

from collections.abc import Callable, Iterator
from typing import Final

from proxy.core.identity import IdentityNameError, names_from
from proxy.settings.checks import credentials, files, listeners, routes
from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.model import Settings
from proxy.settings.problems import Loc
from proxy.settings.sections.credentials import place_name
from proxy.settings.sections.upstreams import UpstreamTls
from proxy.settings.values import quoted


def violations(candidate: Candidate) -> Iterator[RuleViolation]:
    """Every broken rule."""
    for rule in RULES:
        yield from rule(candidate)


def _store(candidate: Candidate) -> Iterator[RuleViolation]:
    if candidate.settings.store != "sqlite" and candidate.sound(("store",)):
        yield RuleViolation(loc=("store",), message="must be sqlite: PostgreSQL is not supported yet")


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
    yield from files.certificate_dates(settings)
    yield from routes.open_above(settings)


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
    listeners.binds,
    listeners.trusted_networks,
    files.files,
    _upstreams,
    routes.meanings,
    routes.second_targets,
    credentials.places,
    credentials.cors,
    routes.unreachable,
    _no_repeats,
    _identity,
    _argon2,
    _webhook,
)
