"""API client for tests: operator requests over the socket, token requests over TCP; checks every response's model."""

from __future__ import annotations

import re
from typing import Any

import aiohttp

from proxy.control.api.openapi import Problem
from proxy.control.api.operation import Operation
from proxy.control.api.operations import OPERATIONS
from tests.unit.control.conftest import World

API = "/api/v1"


def operation_of(method: str, path: str) -> Operation[Any, Any] | None:
    """The operation for this method and path."""
    wanted = "GET" if method == "HEAD" else method
    bare = path.partition("?")[0]
    for row in OPERATIONS:
        pattern = re.sub(r"\{\w+\}", "[^/]+", row.path)
        if row.method.value == wanted and re.fullmatch(pattern, bare):
            return row
    return None


async def request(
    world: World,
    method: str,
    path: str,
    body: object = None,
    *,
    token: str = "",
    headers: dict[str, str] | None = None,
) -> tuple[int, Any, aiohttp.ClientResponse]:
    """Send a request over the socket, or over TCP with a token; returns status, document and response."""
    session = world.tcp if token else world.socket
    sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
    async with session.request(method, API + path, json=body, headers=sent) as answer:
        document = await answer.json(content_type=None)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Request-Id"]
        if answer.status >= 400:
            assert answer.content_type == "application/problem+json"
            Problem.model_validate(document)
            assert document["decision"] == answer.headers["X-Request-Id"]
        else:
            row = operation_of(method, path)
            assert row is not None
            assert answer.status == row.status
            row.answer.model_validate(document)
            assert row.secret or re.search(r'"acme_[a-z]+_\w{12}_', await answer.text()) is None
        return answer.status, document, answer


async def ok(world: World, method: str, path: str, body: object = None, *, token: str = "") -> Any:
    """The document of a request that succeeds."""
    status, document, _ = await request(world, method, path, body, token=token)
    assert status < 300, document
    return document


async def refused(world: World, method: str, path: str, body: object = None, *, token: str = "") -> Any:
    """The problem of a request that is refused."""
    status, document, _ = await request(world, method, path, body, token=token)
    assert status >= 400, document
    return document


async def person(world: World, email: str, role: str, org: str = "") -> Any:
    """Add a user with this role, in an organisation that is created if it does not exist."""
    if not org:
        return await ok(world, "POST", "/users", {"email": email, "role": role})
    known = {item["name"] for item in (await ok(world, "GET", "/orgs"))["items"]}
    if org not in known:
        await ok(world, "POST", "/orgs", {"name": org})
    return await ok(world, "POST", "/users", {"email": email, "role": role, "org": org})


async def minted(world: World, email: str, **more: object) -> Any:
    """Create a token of a user; the document has its value."""
    return await ok(world, "POST", "/tokens", {"user": email, "name": "test", **more})
