"""Places for tokens of single routes: what one route has verified opens no place of another."""

from __future__ import annotations

from typing import Any

from proxy.core.model import Access
from proxy.core.routes import Route
from tests.unit.gateway.kit import Gateway, answering, field_lines, get, make_route, places_of, response, serving

KEYED = {"header": "X-Login", "scheme": "key"}
WHOLE = {"header": "X-Login"}


def routes(**places: Any) -> list[Route]:
    """A route ``/NAME/{id}`` for each list of places; None: those of the gateway."""
    return [
        make_route(
            f"/{name}/{{id}}", Access.TOKEN, index=index, entity="things", credentials=given and places_of(*given)
        )
        for index, (name, given) in enumerate(places.items())
    ]


async def statuses(gateway: Gateway, line: str, *names: str) -> list[int]:
    client = await gateway.client()
    return [(await client.ask(get(f"/{name}/1", line))).status for name in names]


async def test_a_cached_value_is_not_taken_where_its_scheme_is_off() -> None:
    table = routes(any=None, basic=["basic"], bearer=["bearer"])
    async with serving(answering(response()), routes=table) as (gateway, backend):
        line = f"Authorization: Bearer {gateway.admit().token}"
        assert await statuses(gateway, line, "any", "bearer", "basic", "any", "basic") == [200, 200, 401, 200, 401]
        assert gateway.authenticator.hits == 2
        assert len(backend.heads) <= 3


async def test_a_value_with_a_scheme_is_not_taken_as_a_whole_value_from_the_cache() -> None:
    table = routes(keyed=[KEYED], whole=[WHOLE], both=[WHOLE, KEYED])
    async with serving(answering(response()), routes=table) as (gateway, _):
        token = gateway.admit().token
        assert await statuses(gateway, f"X-Login: key {token}", "keyed", "whole", "both", "whole") == [
            200,
            401,
            200,
            401,
        ]
        assert await statuses(gateway, f"X-Login: {token}", "whole", "keyed", "both", "keyed") == [200, 400, 200, 400]


async def test_the_places_of_the_gateway_hold_where_a_route_only_chooses_its_challenge() -> None:
    offering = make_route(
        "/x/{id}",
        Access.TOKEN,
        entity="things",
        credentials=places_of("bearer", "basic", "x-api-key", challenge=["basic"]),
    )
    async with serving(answering(response()), routes=[offering]) as (gateway, _):
        client = await gateway.client()
        answer = await client.ask(get("/x/1", "Authorization: Bearer acme_pat_x"))
        assert answer.all(b"www-authenticate") == [b'Basic realm="acme", charset="UTF-8"']
        assert await statuses(gateway, f"X-API-Key: {gateway.admit().token}", "x", "x") == [200, 200]


async def test_only_the_credential_that_was_used_is_kept_from_the_backend() -> None:
    heads: list[bytes] = []

    def keep(head: bytes) -> bytes:
        heads.append(head)
        return response()

    async with serving(answering(keep), routes=routes(key=["x-api-key"], raw=[{"header": "Authorization"}])) as (
        gateway,
        _,
    ):
        client, token = await gateway.client(), gateway.admit().token
        for name, lines in (
            ("key", (f"X-API-Key: {token}", "authorization: Bearer theirs")),
            ("raw", (f"Authorization: {token}", "x-api-key:theirs")),
        ):
            for _ in range(2):
                assert (await client.ask(get(f"/{name}/1", *lines))).status == 200
        assert [field_lines(head, "Authorization") for head in heads] == [[b"Bearer theirs"]] * 2 + [[]] * 2
        assert [field_lines(head, "X-API-Key") for head in heads] == [[]] * 2 + [[b"theirs"]] * 2
