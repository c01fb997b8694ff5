"""Rules about the addresses of listeners and the networks that they trust."""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import combinations
from typing import Final

from proxy.core.identity import STRIPPED
from proxy.core.request.claims import FAMILY_NAMES, fold
from proxy.settings.addresses import Bind, collides, trusts_everyone
from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.model import Settings
from proxy.settings.problems import Loc, path_of

_OF_GRPC: Final = ("h2", "google.protobuf")
"""The modules that the extra ``patgate[grpc]`` installs."""
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
    binds += [(("listen", name, "bind"), listener.bind) for name, listener in listen.for_ingresses()]
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
    for name, listener in listen.for_ingresses():
        loc = ("listen", name, "trusted")
        reason = trusts_everyone(listener.trusted)
        if reason is not None:
            yield RuleViolation(loc=loc, message=reason)
        elif listener.bind.path:
            if listener.trusted:
                message = "has no effect on a unix socket, which socket_mode protects; remove it"
                yield RuleViolation(loc=loc, message=message)
        elif not listener.trusted and candidate.sound(loc):
            yield RuleViolation(
                loc=loc, message="must list the ingresses that may connect; without it the listener does not start"
            )


def extras(candidate: Candidate) -> Iterator[RuleViolation]:
    """A listener that needs an extra which is not installed."""
    if candidate.settings.listen.ext_authz is None:
        return
    missing = [name for name in _OF_GRPC if not _is_installed(name)]
    if missing:
        message = f"needs the extra patgate[grpc], which is not installed (no {' and no '.join(missing)})"
        yield RuleViolation(loc=("listen", "ext_authz"), message=message)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def shared_secret(candidate: Candidate) -> Iterator[RuleViolation]:
    """A header for the ingress's secret that has another meaning."""
    settings = candidate.settings
    for name, listener in settings.listen.for_ingresses():
        loc: Loc = ("listen", name, "secret", "header")
        if listener.secret is not None and candidate.sound(loc) and _is_taken(settings, listener.secret.header):
            yield RuleViolation(loc=loc, message="has another meaning; choose a header that nothing else uses")


def _is_taken(settings: Settings, header: str) -> bool:
    name = fold(header.encode("ascii"))
    names = (settings.identity.names or {}).values()
    claimed = name in STRIPPED or name in {fold(each.encode("ascii")) for each in names}
    claimed = claimed or (name.startswith(FAMILY_NAMES) and not name.startswith(_OWN_FAMILY))
    second = {fold(each.encode("ascii")) for each in settings.headers.second_targets}
    return claimed or name in _TAKEN or name in second
