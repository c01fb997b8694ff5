"""The warnings of ``patgate check``."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.settings.model import Settings
from proxy.settings.rules import warnings

DENIED = {"path": "/x/**", "access": "denied"}


def warned(*routes: dict[str, Any]) -> list[tuple[object, object]]:
    """The routes with a warning, and the later route that causes it."""
    settings = Settings.model_validate({"routes": list(routes)})
    return [(found.loc[1], found.other[1] if found.other else None) for found in warnings(settings)]


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
