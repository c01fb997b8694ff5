"""Compiling settings for the processes: the route table, the headers for backends, the token format."""

from collections.abc import Sequence
from functools import reduce

from proxy.core.credential_places import AUTHORIZATION, WEBSOCKET_FIELD, CredentialPlaces, Place
from proxy.core.identity import IdentityHeaders, IdentityNames, IdentityOutput, IdentityOutputs, names_from
from proxy.core.request.claims import fold
from proxy.core.request.cors import CorsPolicy, CorsSites
from proxy.core.request.header_edits import HeaderEdits
from proxy.core.request.query import Conditions
from proxy.core.request.target import PathAllowance
from proxy.core.routes import Route, RouteTable, route_name
from proxy.core.token import TokenFormat
from proxy.settings.model import Settings
from proxy.settings.sections.cors import Cors
from proxy.settings.sections.routes import Identity, RouteSettings
from proxy.settings.sections.upstreams import Upstream


def route_table(settings: Settings, places: dict[str, int] | None = None) -> RouteTable:
    """The routes in order; a route's index is its position in the settings, its name is ``routes.route_name``.

    With ``places``, which maps names to indexes, a name keeps its index over several settings; a new name gets the next
    index and is added.
    """
    if places is None:
        return RouteTable(_route(settings, index, route) for index, route in enumerate(settings.routes))
    return RouteTable(
        _route(settings, places.setdefault(route_name(route.path, _query(route)), len(places)), route)
        for route in settings.routes
    )


def _route(settings: Settings, index: int, route: RouteSettings) -> Route:
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
        credentials=_own_places(settings, route),
        cors=None if route.cors is None else _cors(route.cors, route.credentials or settings.credentials),
        refusals=route.refusals,
    )


def credential_places(settings: Settings) -> CredentialPlaces:
    """The places for tokens on routes without places of their own."""
    return _places(settings.credentials, settings.challenge)


def _own_places(settings: Settings, route: RouteSettings) -> CredentialPlaces | None:
    """The places of a route that differs from the others; None if it does not."""
    if route.credentials is None and route.challenge is None:
        return None
    return _places(route.credentials or settings.credentials, route.challenge)


def _places(places: Sequence[Place], challenge: Sequence[str] | None) -> CredentialPlaces:
    offers = None if challenge is None else [offered for word in challenge for offered in _offered(places, word)]
    return CredentialPlaces(places, offers)


def _offered(places: Sequence[Place], scheme: str) -> list[Place]:
    return [place for place in places if place.key == (AUTHORIZATION, scheme.encode("ascii"))]


def presented_fields(settings: Settings, *, websocket: bool) -> frozenset[bytes]:
    """The names of all fields, other than ``Authorization``, that are a place on some route.

    ``websocket``: also that of a WebSocket's subprotocols, where it is one.
    """
    places = [*settings.credentials, *(place for route in settings.routes for place in route.credentials or ())]
    left_out = {AUTHORIZATION} if websocket else {AUTHORIZATION, WEBSOCKET_FIELD}
    return frozenset(place.key[0] for place in places) - left_out


def cors_sites(settings: Settings) -> CorsSites:
    """The CORS policies of sites, and whether any route has one."""
    places = [*settings.credentials, *(place for route in settings.routes for place in route.credentials or ())]
    return CorsSites(
        [(site.host, _cors(site, places)) for site in settings.cors],
        [None if route.cors is None else _cors(route.cors, ()) for route in settings.routes],
    )


def _cors(cors: Cors, places: Sequence[Place]) -> CorsPolicy:
    headers = cors.headers
    if headers is None:
        fields = {place.key[0]: place.header for place in places if place.key[0] != WEBSOCKET_FIELD}
        headers = (*fields.values(), "Content-Type")
    return CorsPolicy(
        origins=frozenset(cors.origins),
        methods=cors.methods,
        headers=headers,
        expose=cors.expose,
        credentials=cors.credentials,
        max_age=int(cors.max_age),
        answers=cors.preflight == "answer",
    )


def identity_names(identity: Identity) -> IdentityNames:
    """The identity headers for backends: those of ``names``, or of the preset."""
    if identity.names is None:
        return names_from(identity.preset)
    return names_from({field.value: name for field, name in identity.names.items()})


def _query(route: RouteSettings) -> Conditions:
    return tuple((name.encode("ascii"), value.encode("ascii")) for name, value in (route.query or {}).items())


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
