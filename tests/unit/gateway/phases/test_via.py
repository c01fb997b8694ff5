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
    """The status and reason that the client got; the backend got no request."""
    async with serving(answering(response())) as (gateway, backend):
        client = await gateway.client()
        answer = await client.ask(data)
        assert answer.closes
        assert await client.rest() == b""
        assert backend.connections == []
        return answer.status, answer.reason


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_request_is_marked_with_via_and_its_http_version(version: str) -> None:
    head = await seen(get("/open/a", version=version))
    assert field_lines(head, "via") == [f"{version} {OWN}".encode()]


async def test_received_via_lines_come_first_and_unchanged() -> None:
    head = await seen(get("/open/a", 'vIA: 1.0 fred, 2 proxy.example (a, "b")', "X-A: b", "Via: HTTP/1.1 last"))
    expected = [b'1.0 fred, 2 proxy.example (a, "b")', b"HTTP/1.1 last", b"1.1 " + PSEUDONYM]
    assert field_lines(head, "via") == expected
    assert b'\r\nvIA: 1.0 fred, 2 proxy.example (a, "b")\r\nX-A: b\r\nVia: HTTP/1.1 last\r\n' in head


async def test_a_nomination_removes_received_via_lines_and_not_patgates() -> None:
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
async def test_a_request_that_has_passed_this_node_is_a_loop(lines: tuple[str, ...]) -> None:
    assert await refused(get("/open/a", *lines)) == (508, "loop_detected")


async def test_another_patgate_in_via_is_not_a_loop() -> None:
    head = await seen(get("/open/a", "Via: 1.1 patgate-ffffffff"))
    assert field_lines(head, "via") == [b"1.1 patgate-ffffffff", b"1.1 " + PSEUDONYM]


@pytest.mark.parametrize(("left", "passed_on"), [("1", b"0"), ("10", b"9"), ("007", b"6")])
async def test_max_forwards_of_options_is_decremented(left: str, passed_on: bytes) -> None:
    head = await seen(get("/open/a", f"Max-Forwards: {left}", method="OPTIONS"))
    assert field_lines(head, "max-forwards") == [passed_on]


async def test_options_with_no_forwards_left_are_not_forwarded() -> None:
    """As for ``*``: not a gateway error that any client could cause, and nothing about the route."""
    assert await refused(get("/open/a", "Max-Forwards: 0", method="OPTIONS")) == (403, "no_route")


@pytest.mark.parametrize("value", ["", "-1", "1.5", "x", "1 1"])
async def test_options_with_an_invalid_max_forwards_are_malformed(value: str) -> None:
    assert await refused(get("/open/a", f"Max-Forwards: {value}", method="OPTIONS")) == (400, "request_malformed")


async def test_max_forwards_means_nothing_for_other_methods() -> None:
    assert field_lines(await seen(get("/open/a", "Max-Forwards: 0")), "max-forwards") == [b"0"]
