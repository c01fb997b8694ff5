"""The route phase: methods are matched in their exact spelling."""

from __future__ import annotations

import pytest

from proxy.core.model import Access
from proxy.core.routes import Route
from tests.unit.gateway.kit import answering, get, make_route, response, serving

ROUTES: list[Route] = [
    make_route("/a", Access.DENIED, index=0, methods=frozenset({"DELETE"})),
    make_route("/a", Access.PUBLIC, index=1),
    make_route("/dav/{id}", Access.TOKEN, index=2, entity="files", operations={"PROPFIND": "list", "M-LOCK": "lock"}),
]


@pytest.mark.parametrize("method", ["delete", "Delete", "dELETE", "get", "Get", "head", "post", "x-custom", "connect"])
async def test_a_method_in_lower_case_is_refused_on_every_route(method: str) -> None:
    async with serving(answering(response()), routes=ROUTES) as (gateway, backend):
        for target in ("/a", "/dav/1", "/nowhere"):
            client = await gateway.client()
            answer = await client.ask(get(target, method=method))
            assert (answer.status, answer.reason) == (405, "method_refused")
            assert "DELETE" in answer.all(b"allow")[0].decode()
        assert backend.connections == []


async def test_the_route_for_one_method_stands_before_the_route_for_all() -> None:
    async with serving(answering(response()), routes=ROUTES) as (gateway, _):
        client = await gateway.client()
        assert (await client.ask(get("/a", method="DELETE"))).reason == "route_denied"
        assert (await client.ask(get("/a", method="GET"))).status == 200


async def test_a_custom_method_in_capitals_is_mapped_as_configured() -> None:
    async with serving(answering(response()), routes=ROUTES) as (gateway, backend):
        minted = gateway.admit(permissions=("files:list",))
        client = await gateway.client()
        login = f"Authorization: Bearer {minted.token}"
        assert (await client.ask(get("/dav/1", login, method="PROPFIND"))).status == 200
        assert backend.connections[0].head.startswith(b"PROPFIND /dav/1 HTTP/1.1\r\n")
        assert (await client.ask(get("/dav/1", login, method="M-LOCK"))).status == 403
        assert (await client.ask(get("/dav/1", login, method="MKCOL"))).status == 403
