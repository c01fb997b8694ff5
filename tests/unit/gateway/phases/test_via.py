"""``Via``, loops and ``Max-Forwards`` (RFC 9110 sections 7.6.2 and 7.6.3)."""

from __future__ import annotations

import pytest

from tests.unit.gateway.kit import PSEUDONYM, answering, field_lines, get, response, serving

OWN = PSEUDONYM.decode()


async def seen(data: bytes) -> bytes:
    """The head that the backend got."""
    async with serving(answering(lambda head: response(head))) as (gateway, _):
        answer = await (await gateway.client()).ask(data)
        assert answer.status == 200
        return answer.body


async def refused(data: bytes) -> tuple[int, str]:
    """What the client got of a request of which the backend got nothing."""
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(data)
        assert answer.closes
        assert await client.rest() == b""
        assert backend.connections == []
        return answer.status, answer.reason


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_request_says_that_it_came_through_here_and_in_which_version_it_came(version: str) -> None:
    head = await seen(get("/open/a", version=version))
    assert field_lines(head, "via") == [f"{version} {OWN}".encode()]


async def test_what_others_have_said_comes_first_and_as_it_was() -> None:
    head = await seen(get("/open/a", 'vIA: 1.0 fred, 2 proxy.example (a, "b")', "X-A: b", "Via: HTTP/1.1 last"))
    expected = [b'1.0 fred, 2 proxy.example (a, "b")', b"HTTP/1.1 last", b"1.1 " + PSEUDONYM]
    assert field_lines(head, "via") == expected
    assert b'\r\nvIA: 1.0 fred, 2 proxy.example (a, "b")\r\nX-A: b\r\nVia: HTTP/1.1 last\r\n' in head


async def test_a_nomination_removes_what_others_have_said_and_not_what_we_say() -> None:
    head = await seen(get("/open/a", "Via: 1.1 other", "Connection: via"))
    assert field_lines(head, "via") == [b"1.1 " + PSEUDONYM]


@pytest.mark.parametrize(
    "lines",
    [
        (f"Via: 1.1 {OWN}",),
        (f"Via: 1.1 one, 1.1 {OWN}, 1.1 two",),
        ("Via: 1.1 one", f"VIA: HTTP/1.1 {OWN} (comment)"),
        (f"Via: 1.1 {OWN}", "Connection: via"),
    ],
)
async def test_a_request_that_has_been_here_is_a_loop(lines: tuple[str, ...]) -> None:
    assert await refused(get("/open/a", *lines)) == (508, "loop_detected")


async def test_another_gateway_of_the_same_kind_is_no_loop() -> None:
    head = await seen(get("/open/a", "Via: 1.1 patgate-ffffffff"))
    assert field_lines(head, "via") == [b"1.1 patgate-ffffffff", b"1.1 " + PSEUDONYM]


@pytest.mark.parametrize(("left", "passed_on"), [("1", b"0"), ("10", b"9"), ("007", b"6")])
async def test_options_may_be_forwarded_one_time_fewer(left: str, passed_on: bytes) -> None:
    head = await seen(get("/open/a", f"Max-Forwards: {left}", method="OPTIONS"))
    assert field_lines(head, "max-forwards") == [passed_on]


async def test_options_that_may_be_forwarded_no_further_end_here() -> None:
    """As for the asterisk: no error of the gateway's, which anybody could cause, and nothing of the route's."""
    assert await refused(get("/open/a", "Max-Forwards: 0", method="OPTIONS")) == (403, "no_route")


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "1 1"])
async def test_options_with_a_count_that_is_none_are_malformed(value: str) -> None:
    assert await refused(get("/open/a", f"Max-Forwards: {value}", method="OPTIONS")) == (400, "request_malformed")


async def test_for_other_methods_the_count_means_nothing() -> None:
    assert field_lines(await seen(get("/open/a", "Max-Forwards: 0")), "max-forwards") == [b"0"]
