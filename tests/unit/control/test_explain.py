"""Explain and reports over the API: for the operator, and for a token within its permissions."""

from __future__ import annotations

import pytest

from proxy.settings.model import Settings
from tests.unit.control.api_client import minted, ok, person, refused, request
from tests.unit.control.conftest import World

ANN = "ann@example.org"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with routes to explain."""
    routes = (
        {"path": "/later/{entity}", "upstream": "app", "enforce": False},
        {"path": "/v1/{entity}/{id}", "upstream": "app"},
    )
    document = settings.model_dump() | {"upstreams": {"app": {"servers": ["http://127.0.0.1:1"]}}, "routes": routes}
    return Settings.model_validate(document)


async def test_a_request_is_explained_to_the_operator_and_to_the_owner(world: World) -> None:
    await person(world, ANN, "viewer")
    mine = await minted(world, ANN)
    path = f"/explain?token={mine['id']}&method=PUT&path=/v1/things/7"
    for token in ("", mine["token"]):
        found = await ok(world, "GET", path, token=token)
        assert (found["verdict"], found["reason"], found["status"]) == ("refused", "role_denies", 403)
        assert found["challenge"] == ['Bearer realm="acme", error="insufficient_scope", scope="things:update"']
    await person(world, "bob@example.org", "viewer")
    stranger = (await minted(world, "bob@example.org"))["token"]
    for asked in (path, "/explain?token=000000000000&method=PUT&path=/v1/things/7"):
        status, problem, _ = await request(world, "GET", asked, token=stranger)
        assert (status, problem["detail"]) == (404, "there is no token with this id or prefix")


async def test_every_invalid_field_is_named_and_no_value_is_repeated(world: World) -> None:
    missing = await refused(world, "GET", "/explain")
    assert [error["field"] for error in missing["errors"]] == ["token", "method", "path"]
    both = await refused(world, "GET", "/explain?decision=abc&token=abc&host=x")
    assert [error["field"] for error in both["errors"]] == ["token", "host"]
    await person(world, ANN, "viewer")
    value = (await minted(world, ANN))["token"]
    for query in (f"decision={value}", f"token=abc&method=GET&path=/v1/{value}", f"token={value}&method=GET&path=/"):
        status, problem, answer = await request(world, "GET", f"/explain?{query}")
        assert status == 422
        assert "whole token" in problem["detail"] or "at most 64 characters" in problem["detail"]
        assert value not in await answer.text()
    status, problem, _ = await request(world, "GET", "/explain?decision=ffffffffffffffffffffffff")
    assert (status, "audit.requests" in problem["detail"]) == (404, True)


async def test_routes_are_listed_as_configured_and_reports_are_cleared(world: World) -> None:
    listed = await ok(world, "GET", "/routes")
    assert [(row["path"], row["enforce"]) for row in listed["items"]] == [
        ("/later/{entity}", False),
        ("/v1/{entity}/{id}", True),
    ]
    assert (await ok(world, "GET", "/routes/report?since=7d")) == {"items": [], "next_cursor": None}
    assert await ok(world, "DELETE", "/routes/report?route=/later/{entity}") == {"cleared": 0}
    assert (await refused(world, "GET", "/routes/report?since=soon"))["errors"][0]["field"] == "since"
    await person(world, ANN, "viewer")
    token = (await minted(world, ANN))["token"]
    for method, path in (("GET", "/routes"), ("GET", "/routes/report"), ("DELETE", "/routes/report")):
        assert (await refused(world, method, path, token=token))["status"] == 403


async def test_a_reload_changes_what_is_explained(world: World, settings: Settings) -> None:
    await person(world, ANN, "viewer")
    mine = await minted(world, ANN)
    path = f"/explain?token={mine['id']}&method=PUT&path=/v1/things/7"
    assert (await ok(world, "GET", path))["route"] == "/v1/{entity}/{id}"
    await world.authority.follow(settings.model_copy(update={"routes": settings.routes[:1], "brand": "acme"}))
    assert (await ok(world, "GET", path))["reason"] == "no_route"
    assert len((await ok(world, "GET", "/routes"))["items"]) == 1
