"""The scheme that a trusted peer says its client used: one of two words, said once, or it is the listener's own."""

from __future__ import annotations

import pytest

from tests.unit.gateway.kit import answering, field_lines, get, response, serving


def scheme(head: bytes) -> bytes:
    return response(b"|".join(field_lines(head, "X-Forwarded-Proto")))


@pytest.mark.parametrize("said", ["http", "https"])
async def test_the_scheme_that_a_trusted_peer_says_is_passed_on(said: str) -> None:
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
async def test_any_other_scheme_or_two_of_them_are_not_believed_of_a_trusted_peer(said: tuple[str, ...]) -> None:
    async with serving(answering(scheme), trusted=["127.0.0.1/32"]) as (gateway, _):
        answer = await (await gateway.client()).ask(get("/open/a", *(f"X-Forwarded-Proto: {one}" for one in said)))
        assert (answer.status, answer.body) == (200, b"http")
