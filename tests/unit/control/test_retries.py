"""Retries with an ``Idempotency-Key`` create a thing once, and show its value once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.control.api_client import minted, ok, person, request
from tests.unit.control.conftest import World

NEW = {
    "/users": {"email": "new@example.org", "role": "viewer"},
    "/orgs": {"name": "new"},
    "/tokens": {"user": "ada@example.org", "name": "ci", "org": "red"},
    "/orgs/red/tokens": {"user": "ada@example.org", "name": "ci"},
    "/keys": {"name": "ci", "grants": {"red": ["things:read"]}},
    "/orgs/red/keys": {"name": "ci", "role": "viewer"},
    "/orgs/red/invitations": {"email": "new@example.org", "role": "viewer"},
}


async def send(world: World, path: str, body: object, key: str, token: str = "") -> tuple[int, Any, bool]:
    status, document, answer = await request(
        world, "POST", path, body, token=token, headers={"Idempotency-Key": key} if key else None
    )
    return status, document, answer.headers.get("Idempotency-Replayed") == "true"


@pytest.mark.parametrize("path", NEW)
async def test_a_retry_gets_what_was_created_without_its_value(world: World, path: str) -> None:
    await person(world, "ada@example.org", "editor", "red")
    status, made, replayed = await send(world, path, NEW[path], "key-1")
    assert (status, replayed) == (201, False)
    status, again, replayed = await send(world, path, NEW[path], "key-1")
    assert (status, replayed, again["id"]) == (201, True, made["id"])
    assert ("token" not in made) or (made["token"] and again["token"] is None)
    # Another key is another request, which creates another thing or conflicts with the first.
    status, other, replayed = await send(world, path, NEW[path], "key-2")
    assert not replayed
    assert status == 409 or other["id"] != made["id"]


@pytest.mark.parametrize("path", ["/users", "/orgs", "/tokens"])
async def test_of_concurrent_requests_with_one_key_one_creates(world: World, path: str) -> None:
    await person(world, "ada@example.org", "editor", "red")
    answers = await asyncio.gather(*(send(world, path, NEW[path], "key") for _ in range(8)))
    assert {status for status, _, _ in answers} == {201}
    assert len({document["id"] for _, document, _ in answers}) == 1
    assert [replayed for _, _, replayed in answers].count(False) == 1


async def test_a_key_that_was_used_for_another_request_is_refused(world: World) -> None:
    await send(world, "/orgs", {"name": "one"}, "key")
    status, problem, _ = await send(world, "/orgs", {"name": "two"}, "key")
    assert (status, problem["errors"][0]["field"]) == (422, "Idempotency-Key")
    status, problem, _ = await send(world, "/users", {"email": "a@example.org", "role": "viewer"}, "key")
    assert status == 422


async def test_the_same_request_in_another_form_is_the_same_request(world: World) -> None:
    await send(world, "/orgs", {"name": "one"}, "key")
    status, _, replayed = await send(world, "/orgs", {"display_name": "", "name": "one"}, "key")
    assert (status, replayed) == (201, True)


async def test_a_key_belongs_to_its_caller(world: World) -> None:
    await person(world, "root@example.org", "admin")
    tokens = [(await minted(world, "root@example.org"))["token"] for _ in range(2)]
    answers = [await send(world, "/orgs", {"name": "one"}, "key", token) for token in (*tokens, "")]
    assert [status for status, _, _ in answers] == [201, 409, 409]


async def test_a_request_that_was_refused_is_not_remembered(world: World) -> None:
    status, _, _ = await send(world, "/tokens", {"user": "ada@example.org", "name": "ci"}, "key")
    assert status == 404
    await person(world, "ada@example.org", "editor")
    status, _, replayed = await send(world, "/tokens", {"user": "ada@example.org", "name": "ci"}, "key")
    assert (status, replayed) == (201, False)


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "x" * 256, "a\tb"])
async def test_an_invalid_key_is_refused(world: World, key: str) -> None:
    status, problem, _ = await request(world, "POST", "/orgs", {"name": "a"}, headers={"Idempotency-Key": key})
    assert (status, problem["reason"]) == (400, "idempotency_key")
    assert (await ok(world, "GET", "/orgs"))["items"] == []


async def test_two_keys_and_a_key_where_nothing_is_created_are_refused(world: World) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    async with world.socket.post("/api/v1/orgs", json={"name": "a"}, headers=headers) as answer:
        assert answer.status == 400
    async with world.socket.get("/api/v1/orgs", headers=[("Idempotency-Key", "a")]) as answer:
        assert answer.status == 400


async def test_a_key_of_255_characters_is_valid(world: World) -> None:
    status, _, _ = await send(world, "/orgs", {"name": "a"}, "!" * 254 + "~")
    assert status == 201
