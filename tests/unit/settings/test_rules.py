"""The warnings of ``patgate check``."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from proxy.settings.checks import spellings
from proxy.settings.checks.candidate import RuleViolation
from proxy.settings.model import Settings
from proxy.settings.rules import warnings

DENIED = {"path": "/x/**", "access": "denied"}


def found_in(*routes: dict[str, Any]) -> list[RuleViolation]:
    return list(warnings(Settings.model_validate({"routes": list(routes)})))


def warned(*routes: dict[str, Any]) -> list[tuple[object, object]]:
    """The routes that leave their parent open, and the later route that causes it."""
    return [
        (found.loc[1], found.other[1] if found.other else None)
        for found in found_in(*routes)
        if "only the paths below" in found.message
    ]


def respelled(*routes: dict[str, Any]) -> list[tuple[object, object, list[str]]]:
    """The denied routes that another spelling leads around, the route that lets it through, and the spellings."""
    return [
        (
            found.loc[1],
            found.other[1] if found.other else None,
            re.findall(r'"(.*?)"', found.message),
        )
        for found in found_in(*routes)
        if "this spelling only" in found.message
    ]


@pytest.mark.parametrize(
    "later",
    [
        {"path": "/{entity}"},
        {"path": "/x", "entity": "x"},
        {"path": "/**", "access": "public"},
        {"path": "/x", "access": "passthrough", "methods": ["GET"]},
        {"path": "/x", "access": "public", "host": "api.example.com"},
    ],
    ids=str,
)
def test_a_later_route_that_allows_the_parent_of_a_denied_path_is_reported(later: dict[str, Any]) -> None:
    assert warned(DENIED, {"path": "/y", "access": "public"}, later) == [(0, 2)]


@pytest.mark.parametrize(
    "routes",
    [
        (DENIED,),
        (DENIED, {"path": "/x", "access": "denied"}, {"path": "/{entity}"}),
        ({"path": "/x", "access": "public"}, DENIED, {"path": "/{entity}"}),
        (DENIED, {"path": "/y/{id}", "entity": "y"}, {"path": "/x/y", "access": "public"}),
        ({"path": "/**", "access": "denied"},),
        ({"path": "/x/y", "access": "denied"}, {"path": "/{entity}"}),
        ({**DENIED, "access": "public"}, {"path": "/{entity}"}),
        ({**DENIED, "host": "a.example"}, {"path": "/{entity}", "host": "b.example"}),
        ({**DENIED, "methods": ["GET"]}, {"path": "/{entity}", "methods": ["POST"]}),
    ],
    ids=str,
)
def test_unreachable_or_explicitly_decided_paths_are_not_reported(routes: tuple[dict[str, Any], ...]) -> None:
    assert warned(*routes) == []


def test_a_capture_counts_as_any_segment() -> None:
    assert warned({"path": "/{org}/x/**", "access": "denied"}, {"path": "/{a}/{b}", "access": "public"}) == [(0, 1)]


ADMIN = {"path": "/admin/**", "access": "denied"}
ALL = ["encoded_slash", "encoded_percent", "semicolon", "empty_segment"]


@pytest.mark.parametrize(
    ("denied", "later", "spellings"),
    [
        (ADMIN, {"path": "/**"}, ["/ADMIN/**"]),
        (ADMIN, {"path": "/{entity}/{id}"}, ["/ADMIN/**"]),
        (ADMIN, {"path": "/**", "methods": ["GET"], "host": "a.example"}, ["/ADMIN/**"]),
        (ADMIN, {"path": "/**", "allow": ["encoded_percent"]}, ["/ADMIN/**", "/%2561dmin/**"]),
        (
            ADMIN,
            {"path": "/**", "allow": ALL},
            ["/ADMIN/**", "/%2561dmin/**", "/admin;x/**", "//admin/**", "/admin%2F**"],
        ),
        ({**ADMIN, "fold_case": True}, {"path": "/**", "allow": ["semicolon"]}, ["/admin;x/**"]),
        ({"path": "/v1/things/special", "access": "denied"}, {"path": "/v1/{entity}/{id}"}, ["/v1/THINGS/special"]),
        ({"path": "/v1/things/special", "access": "denied"}, {"path": "/v1/things/{id}"}, ["/v1/things/SPECIAL"]),
        ({"path": "/v1/x/special/", "access": "denied"}, {"path": "/v1/{entity}/{id}/"}, ["/v1/X/special/"]),
        ({"path": "/7", "access": "denied"}, {"path": "/**"}, ["/7/"]),
        ({"path": "/{org}/admin", "access": "denied"}, {"path": "/acme/{id}"}, ["/{org}/ADMIN"]),
    ],
    ids=str,
)
def test_a_route_that_lets_other_spellings_of_a_denied_path_through_is_reported_once(
    denied: dict[str, Any], later: dict[str, Any], spellings: list[str]
) -> None:
    later = {"access": "public", **later}
    assert respelled({"path": "/other", "access": "public"}, denied, later, later) == [(1, 2, spellings)]


@pytest.mark.parametrize(
    "routes",
    [
        (ADMIN,),
        (ADMIN, {"path": "/v1/**", "access": "public"}),
        (ADMIN, {"path": "/**", "access": "denied"}),
        ({"path": "/**", "access": "public"},),
        ({**ADMIN, "fold_case": True}, {"path": "/**", "access": "public"}),
        (ADMIN, {"path": "/Admin/**", "access": "denied", "fold_case": True}, {"path": "/**", "access": "public"}),
        (ADMIN, {"path": "/{first}", "access": "public"}),
        ({**ADMIN, "host": "a.example"}, {"path": "/**", "access": "public", "host": "b.example"}),
        ({**ADMIN, "query": {"a": "1"}}, {"path": "/**", "access": "public", "query": {"a": "2"}}),
        (
            {"path": "/7/8", "access": "denied"},
            {"path": "/7/8/**", "access": "denied"},
            {"path": "/**", "access": "public"},
        ),
    ],
    ids=str,
)
def test_denied_paths_that_no_spelling_leads_around_are_not_reported(routes: tuple[dict[str, Any], ...]) -> None:
    assert respelled(*routes) == []


def test_the_warning_says_what_to_do() -> None:
    denied = {"path": "/admin", "access": "denied"}
    (found,) = found_in(denied, {"path": "/**", "access": "public", "allow": ["semicolon", "encoded_percent"]})
    for remedy in ("fold_case: true", "encoded_percent and semicolon from allow of routes[1]", "final slash"):
        assert remedy in found.message


def test_a_prefix_that_an_ingress_would_have_to_strip_is_reported() -> None:
    route = {"path": "/npm/**", "upstream": "app", "access": "public", "strip_prefix": "/npm"}
    listen = {"forward_auth": {"trusted": ["10.0.0.1/32"]}}
    messages = [
        [found.message for found in warnings(Settings.model_validate({"routes": [route], "listen": each}))]
        for each in (listen, {})
    ]
    assert ["forward auth" in message for message in messages[0]] == [True]
    assert messages[1] == []


def test_thousands_of_denied_and_open_routes_are_compared_quickly() -> None:
    denied = [{"path": f"/d{number}/**", "access": "denied"} for number in range(1000)]
    opened = [{"path": f"/o{number}/{{id}}", "access": "public"} for number in range(1000)]
    settings = Settings.model_validate({"routes": [*denied, *opened]})
    began = time.process_time()
    assert list(spellings.denied_in_one_spelling(settings)) == []
    assert time.process_time() - began < 10
