"""``X-Forwarded-Proto`` from a trusted peer: one of two values, once; otherwise the listener's own scheme is used."""

from __future__ import annotations

import pytest

from tests.unit.gateway.kit import answering, field_lines, get, response, serving


def scheme(head: bytes) -> bytes:
    return response(b"|".join(field_lines(head, "X-Forwarded-Proto")))


@pytest.mark.parametrize("said", ["http", "https"])
async def test_the_scheme_from_a_trusted_peer_is_forwarded(said: str) -> None:
    async with serving(answering(scheme), trusted=["127.0.0.1/32"]) as (gateway, _):
        answer = await (await gateway.client()).ask(get("/open/a", f"X-Forwarded-Proto: {said}"))
        assert (answer.status, answer.body) == (200, said.encode())


@pytest.mark.parametrize(
    "said",
    [
        ("wss",),
        ("javascript",),
        ("HTTPS",),
        ("https,http",),
        ("https, https",),
        ("https;x",),
        ("",),
        ("https", "https"),
        ("http", "https"),
        ("https", "http"),
        ("https", ""),
    ],
    ids="+".join,
)
async def test_an_unknown_or_repeated_scheme_from_a_trusted_peer_is_ignored(said: tuple[str, ...]) -> None:
    async with serving(answering(scheme), trusted=["127.0.0.1/32"]) as (gateway, _):
        answer = await (await gateway.client()).ask(get("/open/a", *(f"X-Forwarded-Proto: {one}" for one in said)))
        assert (answer.status, answer.body) == (200, b"http")
