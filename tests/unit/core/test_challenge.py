"""Challenges: a refusal offers the schemes that are on for its route, and nothing else."""

from __future__ import annotations

import pytest

from proxy.core.challenge import Challenges
from proxy.core.credential_places import API_KEY, BASIC, BEARER, DEFAULT, WEBSOCKET, CredentialPlaces, Place
from proxy.core.reasons import Challenge
from proxy.core.routes import Match, Route

TOKEN = Place(header="Authorization", scheme="Token")
RAW = Place(header="Authorization")
BEARER_LINE, BASIC_LINE = b'Bearer realm="acme"', b'Basic realm="acme", charset="UTF-8"'


INVALID = b', error="invalid_token"'


def header(name: str) -> bytes:
    """The challenge where a header is the only place."""
    return f'Header realm="acme", name="{name}"'.encode()


def match(credentials: CredentialPlaces | None = None, *, entity: str = "things") -> Match:
    route = Route(index=0, path="/x", entity="things", credentials=credentials)
    return Match(route, entity, None, "read", None)


@pytest.mark.parametrize(
    ("places", "plain", "invalid"),
    [
        (DEFAULT, (BEARER_LINE, BASIC_LINE), (BEARER_LINE + INVALID, BASIC_LINE)),
        (CredentialPlaces([BEARER]), (BEARER_LINE,), (BEARER_LINE + INVALID,)),
        (CredentialPlaces([BASIC]), (BASIC_LINE,), (BASIC_LINE,)),
        (CredentialPlaces([BASIC, BEARER]), (BASIC_LINE, BEARER_LINE), (BASIC_LINE, BEARER_LINE + INVALID)),
        (CredentialPlaces([BEARER, BASIC], [BASIC]), (BASIC_LINE,), (BASIC_LINE,)),
        (CredentialPlaces([TOKEN, API_KEY]), (b'Token realm="acme"',), (b'Token realm="acme"',)),
        (CredentialPlaces([API_KEY]), (header("X-API-Key"),), (header("X-API-Key"),)),
        (CredentialPlaces([RAW]), (header("Authorization"),), (header("Authorization"),)),
        (CredentialPlaces([WEBSOCKET]), (header("Sec-WebSocket-Protocol"),), (header("Sec-WebSocket-Protocol"),)),
    ],
)
def test_a_401_offers_the_schemes_that_are_on_in_their_order(
    places: CredentialPlaces, plain: tuple[bytes, ...], invalid: tuple[bytes, ...]
) -> None:
    everywhere = Challenges(realm="acme", places=places)
    own = Challenges(realm="acme", places=CredentialPlaces([Place(header="X-Other")]))
    for challenges, matched in ((everywhere, None), (everywhere, match()), (own, match(places))):
        assert challenges.values(Challenge.CREDENTIAL, matched) == plain
        assert challenges.values(Challenge.INVALID_TOKEN, matched) == invalid


def test_errors_of_bearer_are_named_only_where_bearer_is_offered() -> None:
    challenges = Challenges(realm="acme", places=DEFAULT)
    request = b'Bearer realm="acme", error="invalid_request"'
    scope = b'Bearer realm="acme", error="insufficient_scope", scope="things:read"'
    without_bearer = match(CredentialPlaces([BEARER, BASIC], [BASIC]))
    for matched, in_400, in_403 in (
        (None, (request,), (scope.partition(b", scope")[0],)),
        (match(), (request,), (scope,)),
        (without_bearer, (), ()),
    ):
        assert challenges.values(Challenge.INVALID_REQUEST, matched) == in_400
        assert challenges.values(Challenge.INSUFFICIENT_SCOPE, matched) == in_403
        assert challenges.values(Challenge.NONE, matched) == ()


def test_a_captured_entity_is_named_only_where_it_is_plain() -> None:
    challenges = Challenges(realm="acme", places=DEFAULT)
    assert challenges.values(Challenge.INSUFFICIENT_SCOPE, match(entity='a"b')) == (
        b'Bearer realm="acme", error="insufficient_scope"',
    )
