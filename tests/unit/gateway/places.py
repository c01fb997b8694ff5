"""Credential places as a configuration names them, and what a gateway makes of them."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.core.challenge import Challenges
from proxy.core.credential_places import AUTHORIZATION, DEFAULT, CredentialPlaces
from proxy.core.model import RefusalFormat
from proxy.core.request.cors import NO_CORS, CorsSites
from proxy.core.routes import Route
from proxy.gateway.phases.respond import Responder
from proxy.settings.sections.credentials import parse_place


def places_of(*words: str | dict[str, str], challenge: Iterable[str] | None = None) -> CredentialPlaces:
    """The places that a configuration names, and the schemes to offer."""
    places = [parse_place(word) for word in words]
    if challenge is None:
        return CredentialPlaces(places)
    return CredentialPlaces(places, [each for word in challenge for each in places if each.scheme.lower() == word])


def presented_by(places: CredentialPlaces, routes: Iterable[Route]) -> frozenset[bytes]:
    """The fields, other than ``Authorization``, that are a place for some route."""
    own = [route.credentials for route in routes if route.credentials is not None]
    return frozenset(field for each in (places, *own) for field, _ in each.keys) - {AUTHORIZATION}


def responder(
    *words: str | dict[str, str],
    cors: CorsSites = NO_CORS,
    refusals: RefusalFormat = RefusalFormat.PROBLEM,
) -> Responder:
    """A responder whose challenges are for these places; by default, for those of a new configuration."""
    places = places_of(*words) if words else DEFAULT
    return Responder(challenges=Challenges(realm="acme", places=places), cors=cors, refusals=refusals)
