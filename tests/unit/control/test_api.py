"""The API over the control socket calls the services and reports errors by field."""

from __future__ import annotations

import threading
from typing import Any

import aiohttp
import pytest

from tests.unit.authority.waiting import until
from tests.unit.control.conftest import World

API = "/api/v1"


async def _ask(
    world: World, method: str, path: str, body: object = None, **more: Any
) -> tuple[int, dict[str, Any], aiohttp.ClientResponse]:
    async with world.socket.request(method, API + path, json=body, **more) as answer:
        return answer.status, await answer.json(content_type=None), answer


async def _ok(world: World, method: str, path: str, body: object = None, *, status: int = 200) -> dict[str, Any]:
    got, document, answer = await _ask(world, method, path, body)
    assert got == status, document
    assert answer.headers["Cache-Control"] == "no-store"
    return document


async def _refused(world: World, method: str, path: str, body: object = None, **more: Any) -> dict[str, Any]:
    status, document, answer = await _ask(world, method, path, body, **more)
    assert answer.content_type == "application/problem+json"
    assert document["status"] == status >= 400
    assert {"type", "title", "detail", "reason"} <= document.keys()
    return document


async def test_a_user_is_added_changed_suspended_and_removed(world: World) -> None:
    body = {"email": "ada@example.org", "role": "editor", "name": "Ada"}
    user = await _ok(world, "POST", "/users", body, status=201)
    assert (user["email"], user["role"], user["status"], user["name"]) == ("ada@example.org", "editor", "active", "Ada")
    assert (await _ok(world, "GET", "/users/ada@example.org"))["id"] == user["id"]
    assert (await _ok(world, "GET", f"/users/{user['id']}"))["email"] == "ada@example.org"
    assert (await _ok(world, "POST", "/users/ada@example.org/role", {"role": "viewer"}))["role"] == "viewer"
    assert (await _ok(world, "POST", "/users/ada@example.org/suspend"))["status"] == "suspended"
    assert (await _ok(world, "POST", "/users/ada@example.org/resume", {}))["status"] == "active"
    assert (await _ok(world, "DELETE", "/users/ada@example.org"))["status"] == "removed"
    assert (await _refused(world, "GET", "/users/ada@example.org"))["reason"] == "not_found"


async def test_organisations_and_memberships_are_managed(world: World) -> None:
    org = await _ok(world, "POST", "/orgs", {"name": "blue"}, status=201)
    body = {"email": "ada@example.org", "role": "viewer", "org": "blue"}
    user = await _ok(world, "POST", "/users", body, status=201)
    assert [(m["org"], m["role"]) for m in user["memberships"]] == [("blue", "viewer")]
    user = await _ok(world, "POST", "/users/ada@example.org/role", {"role": "editor", "org": "blue"})
    assert [m["role"] for m in user["memberships"]] == ["editor"]
    assert (await _ok(world, "GET", "/orgs/blue"))["id"] == org["id"]
    assert [o["name"] for o in (await _ok(world, "GET", "/orgs"))["items"]] == ["blue"]
    assert (await _refused(world, "POST", "/orgs", {"name": "blue"}))["reason"] == "conflict"


async def test_roles_are_listed_shown_and_set(world: World) -> None:
    assert [r["name"] for r in (await _ok(world, "GET", "/roles"))["items"]] == ["admin", "editor", "viewer"]
    assert (await _ok(world, "GET", "/roles/viewer"))["permissions"] == ["things:read"]
    changed = await _ok(world, "PUT", "/roles/viewer", {"permissions": ["things:list", "things:read"]})
    assert changed["permissions"] == ["things:list", "things:read"]
    problem = await _refused(world, "PUT", "/roles/viewer", {"permissions": ["things:read", "nonsense"]})
    assert (problem["status"], [e["field"] for e in problem["errors"]]) == (422, ["permissions[1]"])


async def test_a_token_is_created_used_and_deleted_and_its_secret_is_in_two_responses_only(world: World) -> None:
    await _ok(world, "POST", "/users", {"email": "ada@example.org", "role": "editor"}, status=201)
    body = {
        "user": "ada@example.org",
        "name": "ci",
        "expires": 3600,
        "scopes": ["things:read"],
        "description": "for the build",
    }
    minted = await _ok(world, "POST", "/tokens", body, status=201)
    assert minted["token"].startswith(minted["prefix"] + "_")
    assert (minted["scopes"], minted["name"]) == (["things:read"], "ci")
    assert minted["expires_at"].endswith("Z")
    rotated = await _ok(world, "POST", f"/tokens/{minted['id']}/rotate")
    assert (rotated["id"], rotated["prefix"]) == (minted["id"], minted["prefix"])
    assert rotated["token"] != minted["token"]
    for reference in (minted["id"], minted["prefix"]):
        shown = await _ok(world, "GET", f"/tokens/{reference}")
        assert "token" not in shown
        assert shown["status"] == "active"
    assert (await _ok(world, "POST", f"/tokens/{minted['prefix']}/revoke"))["status"] == "revoked"
    assert [t["id"] for t in (await _ok(world, "GET", "/tokens?status=revoked"))["items"]] == [minted["id"]]
    assert (await _ok(world, "GET", "/tokens?status=active&user=ada@example.org"))["items"] == []
    await _ok(world, "DELETE", f"/tokens/{minted['id']}")
    assert (await _refused(world, "GET", f"/tokens/{minted['id']}"))["status"] == 404


async def test_lists_continue_by_cursor(world: World) -> None:
    for n in range(5):
        await _ok(world, "POST", "/users", {"email": f"u{n}@example.org", "role": "viewer"}, status=201)
    seen, cursor = [], ""
    while True:
        page = await _ok(world, "GET", f"/users?limit=2{cursor}")
        seen += [user["email"] for user in page["items"]]
        if page["next_cursor"] is None:
            break
        assert len(page["items"]) == 2
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == [f"u{n}@example.org" for n in range(5)]


@pytest.mark.parametrize(
    ("method", "path", "body", "fields"),
    [
        ("POST", "/users", {"email": "ada@example.org"}, ["role"]),
        ("POST", "/users", {}, ["email", "role"]),
        ("POST", "/users", {"email": 1, "role": "viewer"}, ["email"]),
        ("POST", "/users", {"email": "no-address", "role": "viewer"}, ["email"]),
        ("POST", "/users", {"email": "ada@example.org", "role": "nobody"}, ["role"]),
        ("POST", "/users", {"email": "ada@example.org", "role": "viewer", "scopez": []}, ["scopez"]),
        ("POST", "/users", {"email": "ada@example.org", "role": "viewer", "<script>": 1}, ["?"]),
        ("POST", "/tokens", {"user": "x", "name": "y", "scopes": "things:read"}, ["scopes"]),
        ("POST", "/tokens", {"user": "x", "name": "y", "scopes": ["a:b", 7]}, ["scopes[1]"]),
        ("POST", "/tokens", {"user": "x", "name": "y", "expires": 0}, ["expires"]),
        ("POST", "/tokens", {"user": "x", "name": "y", "expires": "30d"}, ["expires"]),
        ("POST", "/tokens/0123456789ab/revoke", {"force": True}, ["force"]),
        ("GET", "/users?limit=0", None, ["limit"]),
        ("GET", "/users?limit=-1", None, ["limit"]),
        ("GET", "/users?limit=1&limit=2", None, ["limit"]),
        ("GET", "/users?cursor=%00", None, ["cursor"]),
        ("GET", "/users?role=viewer", None, ["role"]),
        ("GET", "/tokens?status=lost", None, ["status"]),
    ],
)
async def test_an_invalid_field_is_named(world: World, method: str, path: str, body: object, fields: list[str]) -> None:
    problem = await _refused(world, method, path, body)
    assert (problem["status"], problem["reason"]) == (422, "invalid")
    assert [error["field"] for error in problem["errors"]] == fields
    assert "<script>" not in str(problem)


@pytest.mark.parametrize(
    ("data", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"x"', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"email=x", "application/x-www-form-urlencoded", 415),
        (b"{}", "text/plain", 415),
        (b'{"email": "' + b"x" * 65536 + b'"}', "application/json", 413),
    ],
)
async def test_a_body_that_is_not_small_json_is_refused(
    world: World, data: bytes, content_type: str, status: int
) -> None:
    headers = {"Content-Type": content_type}
    async with world.socket.post(f"{API}/users", data=data, headers=headers) as answer:
        assert (answer.status, answer.content_type) == (status, "application/problem+json")


async def test_unknown_things_methods_and_resources_are_problems(world: World) -> None:
    assert (await _refused(world, "GET", "/tokens/0123456789ab"))["status"] == 404
    assert (await _refused(world, "GET", "/nothing"))["status"] == 404
    status, problem, answer = await _ask(world, "PATCH", "/users")
    assert (status, problem["reason"], answer.headers["Allow"]) == (405, "method_not_allowed", "GET,HEAD,POST")


async def test_a_store_that_fails_is_503_and_nothing_was_changed(world: World) -> None:
    store = world.authority._store
    await store.close()
    (world.authority._settings.data_dir / "patgate.db").chmod(0o400)
    for path in world.authority._settings.data_dir.glob("patgate.db*"):
        path.rename(path.with_name("away-" + path.name))
    (world.authority._settings.data_dir / "patgate.db").mkdir()
    problem = await _refused(world, "POST", "/users", {"email": "ada@example.org", "role": "viewer"})
    assert (problem["status"], problem["reason"]) == (503, "store_unavailable")
    async with world.socket.get("/readyz") as answer:
        assert answer.status == 503
        assert {r["check"] for r in (await answer.json())["reasons"]} == {"store", "workers"}
    # aiosqlite lets the thread of a connection that could not be opened end by itself, and it still calls the loop.
    await until(lambda: not [each for each in threading.enumerate() if "_connection_worker_thread" in each.name])


async def test_no_response_discloses_versions_or_allows_other_origins(world: World) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("GET", "OPTIONS", "POST"):
        async with world.socket.request(method, f"{API}/users", headers=headers) as answer:
            assert "Server" not in answer.headers
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
