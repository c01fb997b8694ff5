"""Rules about the addresses of listeners and the networks that they trust."""

from collections.abc import Iterator
from itertools import combinations

from proxy.settings.addresses import Bind, collides, trusts_everyone
from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.problems import Loc, path_of


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
    elif not listen.forward_auth.trusted and candidate.sound(loc):
        yield RuleViolation(
            loc=loc, message="must list the ingresses that may connect; without it the listener does not start"
        )
