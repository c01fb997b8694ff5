"""Compiling settings for the processes: the route table, the identity headers, the token format."""

from functools import reduce

from proxy.core.identity import IdentityHeaders, IdentityNames, IdentityOutputs, names_from
from proxy.core.request.claims import fold
from proxy.core.request.query import Conditions
from proxy.core.request.target import PathAllowance
from proxy.core.routes import Route, RouteTable, route_name
from proxy.core.token import TokenFormat
from proxy.settings.model import Settings
from proxy.settings.sections.routes import RouteSettings


def route_table(settings: Settings, places: dict[str, int] | None = None) -> RouteTable:
    """The routes in order; a route's index is its position in the settings, its name is ``routes.route_name``.

    With ``places``, which maps names to indexes, a name keeps its index over several settings; a new name gets the next
    index and is added.
    """
    if places is None:
        return RouteTable(_route(index, route) for index, route in enumerate(settings.routes))
    return RouteTable(
        _route(places.setdefault(route_name(route.path, _query(route)), len(places)), route)
        for route in settings.routes
    )


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
        query=_query(route),
        entity_id=route.id,
        allow=int(reduce(lambda bits, word: bits | PathAllowance[word.upper()], route.allow, PathAllowance.NONE)),
        fold_case=route.fold_case,
        strip_prefix=route.strip_prefix or "",
        enforce=route.enforce,
        second_targets=frozenset(fold(name.encode("ascii")) for name in route.second_targets),
    )


def _query(route: RouteSettings) -> Conditions:
    return tuple((name.encode("ascii"), value.encode("ascii")) for name, value in (route.query or {}).items())


def identity_names(settings: Settings) -> IdentityNames:
    """The identity headers for backends: those of ``identity.names``, or of the preset."""
    names = settings.identity.names
    if names is None:
        return names_from(settings.identity.preset)
    return names_from({field.value: name for field, name in names.items()})


def identity_outputs(settings: Settings) -> IdentityOutputs:
    """Everything that tells backends who the caller is."""
    return IdentityOutputs((IdentityHeaders(identity_names(settings)),))


def token_format(settings: Settings) -> TokenFormat:
    """The token format of the brand."""
    return TokenFormat(settings.brand)
