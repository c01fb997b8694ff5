"""Compiling settings for the processes: the route table, the headers for backends, the token format."""

from functools import reduce

from proxy.core.identity import IdentityHeaders, IdentityNames, IdentityOutput, IdentityOutputs, names_from
from proxy.core.request.claims import fold
from proxy.core.request.header_edits import HeaderEdits
from proxy.core.request.target import PathAllowance
from proxy.core.routes import Route, RouteTable
from proxy.core.token import TokenFormat
from proxy.settings.model import Settings
from proxy.settings.sections.routes import Identity, RouteSettings
from proxy.settings.sections.upstreams import Upstream


def route_table(settings: Settings, places: dict[str, int] | None = None) -> RouteTable:
    """The routes in order; a route's index is its position in the settings, its name is its pattern.

    With ``places``, which maps names to indexes, a name keeps its index over several settings; a new name gets the next
    index and is added.
    """
    if places is None:
        return RouteTable(_route(index, route) for index, route in enumerate(settings.routes))
    return RouteTable(_route(places.setdefault(route.path, len(places)), route) for route in settings.routes)


def _route(index: int, route: RouteSettings) -> Route:
    return Route(
        index=index,
        path=route.path,
        upstream=route.upstream or "",
        access=route.access,
        entity=route.entity,
        operations=dict(route.operations or {}),
        methods=None if route.methods is None else frozenset(route.methods),
        host=route.host,
        allow=int(reduce(lambda bits, word: bits | PathAllowance[word.upper()], route.allow, PathAllowance.NONE)),
        enforce=route.enforce,
        second_targets=frozenset(fold(name.encode("ascii")) for name in route.second_targets),
    )


def identity_names(identity: Identity) -> IdentityNames:
    """The identity headers for backends: those of ``names``, or of the preset."""
    if identity.names is None:
        return names_from(identity.preset)
    return names_from({field.value: name for field, name in identity.names.items()})


def identity_outputs(settings: Settings) -> IdentityOutputs:
    """Everything that tells backends who the caller is: for all upstreams, and for those with an identity of theirs."""
    everywhere = _outputs(settings.identity)
    own = {name: _outputs(each.identity) for name, each in settings.upstreams.items() if each.identity is not None}
    # Requests to upstreams whose outputs are the usual ones need no other lines.
    return IdentityOutputs(
        everywhere, {name: IdentityOutputs(each) for name, each in own.items() if each != everywhere}
    )


def _outputs(identity: Identity) -> tuple[IdentityOutput, ...]:
    return (IdentityHeaders(identity_names(identity)),)


def header_edits(upstream: Upstream) -> HeaderEdits | None:
    """The headers that requests to this upstream get and lose; None if there are none."""
    if not upstream.set_headers and not upstream.remove_headers:
        return None
    return HeaderEdits([(name, value.text) for name, value in upstream.set_headers.items()], upstream.remove_headers)


def token_format(settings: Settings) -> TokenFormat:
    """The token format of the brand."""
    return TokenFormat(settings.brand)
