"""Refusals of forward-auth calls, in forms that every ingress can pass on."""

from __future__ import annotations

import json

import pytest

from proxy.core.model import Access, RefusalFormat
from proxy.core.reasons import TABLE
from tests.unit.gateway.ingress import DESCRIBING, SHAPES, ask_on, carried, changed, entry, login
from tests.unit.gateway.kit import get, make_route


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_refusal_has_its_parts_in_fields(shape: str) -> None:
    async with entry() as gateway:
        client = await gateway.client()
        for line in ("X-Any: 1", "Authorization: Bearer nonsense", login(gateway, permissions=("things:list",))):
            answer = await ask_on(client, shape, SHAPES[shape], line)
            document = json.loads(answer.body)
            for part in ("status", "title", "detail", "reason", "decision"):
                assert answer.all(b"x-patgate-" + part.encode()) == [str(document[part]).encode()]
            assert answer.all(b"x-request-id") == [document["decision"].encode()]
            challenges = answer.all(b"www-authenticate")
            assert challenges
            numbered = [answer.all(b"x-patgate-challenge-%d" % number) for number in range(1, len(challenges) + 2)]
            assert numbered == [*([challenge] for challenge in challenges), []]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_refusal_has_the_format_of_the_described_route_and_the_same_fields(shape: str) -> None:
    answers = []
    for refusals in RefusalFormat:
        route = make_route("/v1/{entity}/{id}", Access.TOKEN, refusals=refusals)
        async with entry(routes=[route]) as gateway:
            client = await gateway.client()
            answer = await ask_on(client, shape, SHAPES[shape], login(gateway, permissions=("things:list",)))
            (decision,) = answer.all(b"x-patgate-decision")
            assert answer.status == 403
            assert b"role_denies" in answer.body and decision in answer.body
            names = (b"status", b"title", b"detail", b"reason", b"challenge-1")
            fields = [answer.all(b"x-patgate-" + name) for name in names]
            answers.append((answer.all(b"content-type"), fields))
    types = [b"application/problem+json", b"text/plain; charset=utf-8", b"application/json"]
    assert [media_type for media_type, _ in answers] == [[each] for each in types]
    assert all(fields == answers[0][1] and all(fields) for _, fields in answers)


def test_every_refusal_can_be_built_again_from_its_fields() -> None:
    """An ingress puts them between quotation marks, without escapes."""
    for row in TABLE.values():
        for text in (row.title, row.detail, row.public):
            assert text.isascii() and text.isprintable() and text == text.strip()
            assert not set(text) & set('"\\$')


@pytest.mark.parametrize("shape", DESCRIBING)
async def test_an_ingress_that_understands_few_statuses_gets_403_for_the_others(shape: str) -> None:
    """Nginx makes a 500 of every status but 401 and 403, and forwards a request only after 2xx."""
    async with entry(max_request_line=300, max_head=4096, max_headers=20) as gateway:
        path = shape.partition(" ")[0]
        said = [f"{name}: {value}" for name, value in SHAPES[shape]]
        many = [f"X-Field-{number}: x" for number in range(30)]
        long = f"X-Long: {'x' * 5000}"
        for data, status in (
            (get(path, *said), 401),
            (get(path, *said, "Authorization: Basic"), 400),
            (get(path, *said, "Host: other"), 400),
            (get(path + "?" + "a" * 400, *said), 414),
            (get(path, *said, *many), 431),
            (get(path, *said, long), 431),
            (get(path, *said, "Expect: nothing"), 417),
            (get(path, *said, "Transfer-Encoding: chunked", method="POST") + b"nonsense\r\n", 400),
            (b"\r\n" + get(path, *said, "Bad name: x"), 400),
        ):
            client = await gateway.client()
            answer = carried(path, await client.ask(data))
            assert answer.status == status
            assert json.loads(answer.body)["status"] == status


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_refusal_of_a_head_call_has_no_body_and_keeps_the_connection(shape: str) -> None:
    """A refusal with a body makes nginx close its connection to patgate."""
    async with entry() as gateway:
        client = await gateway.client()
        for _ in range(2):
            answer = await ask_on(client, shape, SHAPES[shape], method="HEAD")
            assert (answer.status, answer.body, answer.closes) == (401, b"", False)
        # The method of the call is judged only where it is the request's own.
        only = login(gateway, permissions=("things:read",))
        assert (await ask_on(client, shape, SHAPES[shape], only, method="HEAD")).status == 200
        if SHAPES[shape]:
            put = changed(SHAPES[shape], SHAPES[shape][0][0], "PUT")
            assert (await ask_on(client, shape, put, only, method="HEAD")).status == 403
