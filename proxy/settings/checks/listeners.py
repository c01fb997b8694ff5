"""Rules about the addresses of listeners and the networks that they trust."""

from collections.abc import Iterator
from itertools import combinations
from typing import Final

from proxy.core.identity import STRIPPED
from proxy.core.request.claims import FAMILY_NAMES, fold
from proxy.settings.addresses import Bind, collides, trusts_everyone
from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.problems import Loc, path_of

_OWN_FAMILY: Final = b"x-patgate-"
_TAKEN: Final = frozenset((b"method", b"path", b"x-request-id", b"cookie", b"if"))
"""Folded names of headers that patgate reads, beside those that ``HeaderName`` refuses, claims and second targets."""


def binds(candidate: Candidate) -> Iterator[RuleViolation]:
    """Two listeners with the same port."""
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


def trusted_networks(candidate: Candidate) -> Iterator[RuleViolation]:
    """Networks that are too wide, or missing where they are required."""
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
    elif listen.forward_auth.bind.path:
        if listen.forward_auth.trusted:
            message = "has no effect: whoever may open the unix socket is trusted (socket_mode); remove it"
            yield RuleViolation(loc=loc, message=message)
    elif not listen.forward_auth.trusted and candidate.sound(loc):
        yield RuleViolation(
            loc=loc, message="must list the ingresses that may connect; without it the listener does not start"
        )


def shared_secret(candidate: Candidate) -> Iterator[RuleViolation]:
    """A header for the ingress's secret that has another meaning."""
    settings = candidate.settings
    forward_auth = settings.listen.forward_auth
    loc: Loc = ("listen", "forward_auth", "secret", "header")
    if forward_auth is None or forward_auth.secret is None or not candidate.sound(loc):
        return
    name = fold(forward_auth.secret.header.encode("ascii"))
    names = (settings.identity.names or {}).values()
    claimed = name in STRIPPED or name in {fold(each.encode("ascii")) for each in names}
    claimed = claimed or (name.startswith(FAMILY_NAMES) and not name.startswith(_OWN_FAMILY))
    second = {fold(each.encode("ascii")) for each in settings.headers.second_targets}
    if claimed or name in _TAKEN or name in second:
        yield RuleViolation(loc=loc, message="has another meaning; choose a header that nothing else uses")
