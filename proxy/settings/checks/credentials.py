"""Rules about places for tokens, challenges and CORS."""

from collections.abc import Iterator, Sequence

from proxy.core.credential_places import AUTHORIZATION, Place
from proxy.core.identity import IdentityNameError, names_from
from proxy.core.model import Access
from proxy.core.request.claims import fold
from proxy.core.request.cors import ANY_ORIGIN
from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.model import Settings
from proxy.settings.problems import Loc
from proxy.settings.sections.cors import Cors
from proxy.settings.values import quoted


def places(candidate: Candidate) -> Iterator[RuleViolation]:
    """Places in headers that patgate removes or judges, and places and challenges where no token is checked."""
    settings = candidate.settings
    taken = _taken(settings) if candidate.sound(("headers",)) and candidate.sound(("identity",)) else {}
    for loc, given, challenge in _all(settings):
        if candidate.sound((*loc, "credentials")):
            for number, place in enumerate(given):
                why = taken.get(fold(place.header.encode("ascii")))
                if why is not None:
                    message = f"{quoted(place.header)} {why}, so it cannot hold a token"
                    yield RuleViolation(loc=(*loc, "credentials", number), message=message)
            if candidate.sound((*loc, "challenge")):
                yield from _challenge((*loc, "challenge"), given, challenge)
    for index, route in enumerate(settings.routes):
        for name in ("credentials", "challenge"):
            loc = ("routes", index, name)
            if getattr(route, name) is not None and route.access is not Access.TOKEN and candidate.sound(loc[:-1]):
                message = f"has no meaning on a route whose access is {route.access}: no token is checked there"
                yield RuleViolation(loc=loc, message=message)


def _all(settings: Settings) -> Iterator[tuple[Loc, Sequence[Place], Sequence[str] | None]]:
    """The places and the challenge of the gateway, and of every route that has its own."""
    yield (), settings.credentials, settings.challenge
    for index, route in enumerate(settings.routes):
        if route.credentials is not None or route.challenge is not None:
            yield ("routes", index), route.credentials or settings.credentials, route.challenge


def _taken(settings: Settings) -> dict[bytes, str]:
    """Folded names of headers that the configuration gives a meaning, and which."""
    taken = {fold(name.encode("ascii")): "is in headers.dropped" for name in settings.headers.dropped}
    for name in settings.headers.second_targets:
        taken[fold(name.encode("ascii"))] = "is in headers.second_targets"
    identity = settings.identity
    try:
        names = names_from(
            identity.preset if identity.names is None else {field.value: name for field, name in identity.names.items()}
        )
    except IdentityNameError:
        return taken
    for _, header in names.headers:
        taken[fold(header.encode("ascii"))] = "is an identity header"
    return taken


def _challenge(loc: Loc, given: Sequence[Place], challenge: Sequence[str] | None) -> Iterator[RuleViolation]:
    on = {place.key[1].decode("ascii") for place in given if place.key[0] == AUTHORIZATION and place.scheme}
    for number, scheme in enumerate(challenge or ()):
        if scheme not in on:
            message = f"offers {quoted(scheme)}, which is no scheme of Authorization that credentials accepts here"
            yield RuleViolation(loc=(*loc, number), message=message)


def cors(candidate: Candidate) -> Iterator[RuleViolation]:
    """Origins that do not fit together."""
    settings = candidate.settings
    policies: list[tuple[Loc, Cors]] = [(("cors", number), site) for number, site in enumerate(settings.cors)]
    policies += [(("routes", index, "cors"), route.cors) for index, route in enumerate(settings.routes) if route.cors]
    for loc, policy in policies:
        if not candidate.sound(loc) or ANY_ORIGIN not in policy.origins:
            continue
        if len(policy.origins) > 1:
            yield RuleViolation(loc=(*loc, "origins"), message="* must be the only entry: it allows every origin")
        if policy.credentials:
            message = "is not possible with the origin *: name the origins that may send cookies and stored logins"
            yield RuleViolation(loc=(*loc, "credentials"), message=message)
