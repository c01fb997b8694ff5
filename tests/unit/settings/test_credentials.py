"""Settings of places for tokens, challenges, CORS and the format of refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.core.credential_places import API_KEY, BASIC, BEARER, WEBSOCKET, Place
from proxy.core.errors import ConfigurationError
from proxy.core.model import RefusalFormat
from proxy.settings.compile import cors_sites, credential_places, presented_fields, route_table
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.settings.sections.credentials import parse_place

ROUTE = {"path": "/x", "upstream": "app", "entity": "things"}


def loaded(tmp_path: Path, **settings: Any) -> Settings:
    file = tmp_path / "patgate.yaml"
    routes = settings.pop("routes", [ROUTE])
    file.write_text(
        yaml.safe_dump({"upstreams": {"app": {"servers": ["http://127.0.0.1:1"]}}, "routes": routes} | settings)
    )
    return load(file, {})


def problems(tmp_path: Path, **settings: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, **settings)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("bearer", BEARER),
        ("websocket-protocol", WEBSOCKET),
        ({"header": "authorization", "scheme": "BEARER"}, BEARER),
        ({"header": "Authorization", "scheme": "basic"}, BASIC),
        ({"header": "x-api-key"}, API_KEY),
        ({"header": "PRIVATE-TOKEN"}, Place(header="PRIVATE-TOKEN")),
        ({"header": "Authorization"}, Place(header="Authorization")),
        ({"header": "Authorization", "scheme": "Token"}, Place(header="Authorization", scheme="Token")),
    ],
)
def test_a_place_is_read_and_the_same_place_is_the_same_word(value: object, place: Place) -> None:
    assert parse_place(value) == place


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("query", 'must be bearer, basic, x-api-key, websocket-protocol, { header: NAME } or'),
        ({"scheme": "token"}, "must be bearer"),
        ({"header": "X", "query": "token"}, "must be bearer"),
        (7, "must be bearer"),
        ({"header": "X Y"}, "the header of a place is a field name"),
        ({"header": "X_Y"}, "the header of a place is a field name"),
        ({"header": "X-Login", "scheme": "a b"}, "the scheme of a place is one word"),
        ({"header": "Cookie"}, "already has a meaning in HTTP"),
        ({"header": "Host"}, "already has a meaning in HTTP"),
        ({"header": "Proxy-Authorization"}, "already has a meaning in HTTP"),
        ({"header": "X-Request-Id"}, "already has a meaning in HTTP"),
        ({"header": "Sec-WebSocket-Protocol"}, "only as websocket-protocol"),
        ({"header": "Sec-WebSocket-Key"}, "has another meaning"),
        ({"header": "X-Forwarded-For"}, "has another meaning"),
        ({"header": "X-Forwarded-Access-Token"}, "has another meaning"),
        ({"header": "X-Original-URL"}, "has another meaning"),
        ({"header": "Origin"}, "has another meaning"),
        ({"header": "Access-Control-Request-Method"}, "has another meaning"),
    ],
)  # fmt: skip
def test_what_can_be_no_place_is_refused_in_words(tmp_path: Path, value: object, message: str) -> None:
    for settings in ({"credentials": ["bearer", value]}, {"routes": [ROUTE | {"credentials": ["bearer", value]}]}):
        (problem,) = problems(tmp_path, **settings)
        assert "credentials[1]: " in problem
        assert message in problem


def test_a_place_in_a_header_with_another_use_is_refused(tmp_path: Path) -> None:
    given = ["bearer", {"header": "X-Mine"}, {"header": "X-Auth-User"}, {"header": "X-Copy"}]
    found = problems(
        tmp_path, credentials=given, headers={"dropped": ["x-mine"], "second_targets": ["Destination", "X-Copy"]}
    )
    assert found == [
        'credentials[1]: "X-Mine" is in headers.dropped, so it cannot hold a token',
        'credentials[2]: "X-Auth-User" is an identity header, so it cannot hold a token',
        'credentials[3]: "X-Copy" is in headers.second_targets, so it cannot hold a token',
    ]


def test_a_challenge_offers_only_schemes_that_are_on_where_it_applies(tmp_path: Path) -> None:
    assert problems(
        tmp_path,
        credentials=["bearer", "x-api-key"],
        challenge=["basic", "bearer"],
        routes=[
            ROUTE | {"challenge": ["bearer"]},
            ROUTE | {"path": "/a", "credentials": ["basic"], "challenge": ["bearer"]},
            ROUTE | {"path": "/b", "challenge": ["bearer", "Bearer"]},
        ],
    ) == [
        'challenge[0]: offers "basic", which is no scheme of Authorization that credentials accepts here',
        'routes[1].challenge[0]: offers "bearer", which is no scheme of Authorization that credentials accepts here',
        'routes[2].challenge[1]: "bearer" is listed twice',
    ]


def test_places_of_a_route_without_tokens_are_refused(tmp_path: Path) -> None:
    route = {"path": "/x", "upstream": "app", "access": "public", "credentials": ["bearer"], "challenge": ["bearer"]}
    assert problems(tmp_path, routes=[route]) == [
        f"routes[0].{name}: has no meaning on a route whose access is public: no token is checked there"
        for name in ("challenge", "credentials")
    ]


def test_one_place_in_two_spellings_is_listed_twice(tmp_path: Path) -> None:
    assert problems(tmp_path, credentials=["bearer", {"header": "authorization", "scheme": "Bearer"}]) == [
        'credentials[1]: "bearer" is listed twice'
    ]
    assert problems(tmp_path, credentials=[{"header": "X-A"}, {"header": "x-a"}]) == [
        'credentials[1]: "x-a" is listed twice'
    ]


def test_routes_inherit_the_places_and_choose_their_own(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        credentials=["bearer", "basic", {"header": "PRIVATE-TOKEN"}],
        challenge=["basic"],
        routes=[
            ROUTE,
            ROUTE | {"path": "/a", "challenge": ["Bearer", "basic"]},
            ROUTE | {"path": "/b", "credentials": ["x-api-key", "websocket-protocol", "bearer"]},
        ],
    )
    plain, offering, own = route_table(settings).routes
    everywhere = credential_places(settings)
    assert everywhere.offers == (BASIC,)
    assert plain.credentials is None
    assert offering.credentials is not None and own.credentials is not None
    assert (offering.credentials.keys, offering.credentials.offers) == (everywhere.keys, (BEARER, BASIC))
    assert own.credentials.offers == (BEARER,)
    assert own.credentials.websocket
    fields = {b"private-token", b"x-api-key"}
    assert presented_fields(settings, websocket=True) == fields | {b"sec-websocket-protocol"}
    assert presented_fields(settings, websocket=False) == fields
    assert Settings.from_boot_json(settings.to_worker_json()) == settings


def test_routes_inherit_the_format_of_refusals_and_choose_their_own(tmp_path: Path) -> None:
    settings = loaded(tmp_path, refusals="json", routes=[ROUTE, ROUTE | {"path": "/a", "refusals": "text"}])
    assert settings.refusals is RefusalFormat.JSON
    assert [route.refusals for route in route_table(settings).routes] == [None, RefusalFormat.TEXT]
    assert Settings.from_boot_json(settings.to_worker_json()) == settings
    assert loaded(tmp_path).refusals is RefusalFormat.PROBLEM


@pytest.mark.parametrize("value", ["npm", "PROBLEM", None, ["json"]])
def test_another_format_of_refusals_is_a_mistake(tmp_path: Path, value: object) -> None:
    (problem,) = problems(tmp_path, refusals=value)
    assert problem.startswith("refusals: ")
    if value is not None:
        (problem,) = problems(tmp_path, routes=[ROUTE | {"refusals": value}])
        assert problem.startswith("routes[0].refusals: ")


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("https://app.example.com/", "is not an origin as browsers send it"),
        ("https://App.example.com", "is not an origin as browsers send it"),
        ("app.example.com", "is not an origin as browsers send it"),
        ("https://*.example.com", "is not an origin as browsers send it"),
        ("https://a\r\nb", "is not an origin as browsers send it"),
        ("https://app.example.com:443", "never matches"),
        ("http://app.example.com:80", "never matches"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(tmp_path: Path, origin: str, message: str) -> None:
    (problem,) = problems(tmp_path, cors=[{"origins": [origin]}])
    assert problem.startswith("cors[0].origins[0]: ")
    assert message in problem


def test_every_origin_stands_alone_and_never_with_credentials(tmp_path: Path) -> None:
    advice = "name the origins that may send cookies and stored logins"
    assert problems(
        tmp_path,
        cors=[{"origins": ["*", "null"]}],
        routes=[ROUTE | {"cors": {"origins": ["*"], "credentials": True}}],
    ) == [
        "cors[0].origins: * must be the only entry: it allows every origin",
        f"routes[0].cors.credentials: is not possible with the origin *: {advice}",
    ]
    (problem,) = problems(tmp_path, cors=[{"origins": ["null"], "headers": ["*"]}])
    assert "browsers do not count Authorization among *" in problem


def test_a_preflight_allows_the_headers_that_hold_tokens_unless_others_are_named(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        credentials=["bearer", {"header": "Private-Token"}, "websocket-protocol"],
        cors=[{"origins": ["https://a.example"], "max_age": "1h"}],
        routes=[
            ROUTE | {"cors": {"origins": ["https://b.example"], "headers": ["If-Match"], "preflight": "pass"}},
            ROUTE | {"path": "/y", "credentials": ["x-api-key"]},
        ],
    )
    site = cors_sites(settings).policy(None, "x")
    assert site is not None
    assert site.headers == ("Authorization", "Private-Token", "X-API-Key", "Content-Type")
    assert (site.max_age, site.answers) == (3600, True)
    route = route_table(settings).routes[0].cors
    assert route is not None
    assert (route.headers, route.answers) == (("If-Match",), False)
    assert Settings.from_boot_json(settings.to_worker_json()) == settings
