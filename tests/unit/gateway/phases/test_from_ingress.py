"""What a trusted peer says of the client: address, request id, prefix and port. Nobody else is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.authority.workers import report_parsing
from proxy.gateway.phases.record import ExchangeRecorder
from proxy.settings.model import Audit, Log
from tests.unit.gateway.ingress import entry
from tests.unit.gateway.kit import Gateway, answering, field_lines, get, response, serving

TRUSTED = ("127.0.0.1/32", "10.0.0.0/8")
SAID = (
    "X-Forwarded-For: 198.51.100.1, 203.0.113.9:4711, 10.0.0.2",
    "X-Request-Id: ingress-7",
    "X-Forwarded-Prefix: /npm",
    "X-Forwarded-Port: 8443",
    "X-Real-IP: 203.0.113.9",
)
NAMES = ("x-forwarded-prefix", "x-forwarded-port", "x-real-ip")


def mirror(head: bytes) -> bytes:
    return response(head)


async def head_of(gateway: Gateway, *lines: str) -> bytes:
    client = await gateway.client()
    answer = await client.ask(get("/open/a", *lines))
    assert answer.status == 200, answer
    return answer.body


def events_of(gateway: Gateway) -> list[dict[str, Any]]:
    found = [json.loads(event) for event in gateway.recorder.trail.events.take(100)[0]]
    return [dict(report_parsing.event(event).event.details) for event in found]


def recorded(gateway: Gateway) -> ExchangeRecorder:
    """Let the gateway log and keep an event of every request."""
    recorder = gateway.recorder
    recorder.follow(gateway.pipeline.routes.routes, Log(access="all"), 1, Audit(requests="all"))
    return recorder


async def test_prefix_port_and_address_of_a_trusted_peer_reach_the_backend_once() -> None:
    async with serving(answering(mirror), trusted=TRUSTED) as (gateway, _):
        head = await head_of(gateway, *SAID, f"Connection: {', '.join(NAMES)}")
        assert [field_lines(head, name) for name in NAMES] == [[b"/npm"], [b"8443"], [b"203.0.113.9"]]
        assert b"ingress-7" not in head
        chain = b"198.51.100.1, 203.0.113.9:4711, 10.0.0.2, 127.0.0.1"
        assert field_lines(head, "x-forwarded-for") == [chain]


async def test_an_address_of_the_clients_own_beside_a_trusted_chain_is_replaced_by_the_judged_one() -> None:
    """A load balancer that only appends to ``X-Forwarded-For`` passes on the client's ``X-Real-IP``."""
    async with serving(answering(mirror), trusted=TRUSTED) as (gateway, _):
        head = await head_of(gateway, "X-Real-IP: 10.9.9.9", "X-Forwarded-For: 203.0.113.9")
        assert field_lines(head, "x-real-ip") == [b"203.0.113.9"]


async def test_of_any_other_peer_nothing_reaches_the_backend() -> None:
    async with serving(answering(mirror), trusted=["10.0.0.0/8"]) as (gateway, _):
        head = await head_of(gateway, *SAID)
        assert [field_lines(head, name) for name in NAMES] == [[], [], []]
        assert field_lines(head, "x-forwarded-for") == [b"127.0.0.1"]


@pytest.mark.parametrize(
    "line",
    [
        "X-Forwarded-Prefix: npm", "X-Forwarded-Prefix: //npm", "X-Forwarded-Prefix: /a/../b",
        "X-Forwarded-Prefix: /%2F", "X-Forwarded-Prefix: /a?b", "X-Forwarded-Prefix: /a, /b", "X-Forwarded-Prefix:",
        "X-Forwarded-Prefix: /" + "a" * 512,
        "X-Forwarded-Port: 0", "X-Forwarded-Port: 65536", "X-Forwarded-Port: 080443", "X-Forwarded-Port: 80, 81",
        "X-Forwarded-Port: -1", "X-Real-IP: unknown", "X-Real-IP: 1.2.3.4, 5.6.7.8", "X-Real-IP:",
        "X_Forwarded_Prefix: /npm", "X-Forwarded.Port: 80", "X_Real_IP: 203.0.113.9",
    ],
)  # fmt: skip
async def test_what_is_not_one_valid_value_does_not_go_on(line: str) -> None:
    async with serving(answering(mirror), trusted=TRUSTED) as (gateway, _):
        head = await head_of(gateway, line)
        assert [field_lines(head, name) for name in NAMES] == [[], [], []]


@pytest.mark.parametrize("line", ["X-Forwarded-Prefix: /npm", "X-Forwarded-Port: 80", "X-Real-IP: 203.0.113.9"])
async def test_what_is_said_twice_does_not_go_on(line: str) -> None:
    async with serving(answering(mirror), trusted=TRUSTED) as (gateway, _):
        assert [field_lines(await head_of(gateway, line, line), name) for name in NAMES] == [[], [], []]


async def test_log_event_and_usage_have_the_client_that_a_trusted_peer_names() -> None:
    async with serving(answering(mirror), trusted=TRUSTED) as (gateway, _):
        recorder = recorded(gateway)
        minted = gateway.admit()
        client = await gateway.client()
        login = f"Authorization: Bearer {minted.token}"
        assert (await client.ask(get("/v1/things/7", login, *SAID))).status == 200
        recorder.flush()
        [line] = gateway.access
        assert (line["peer"], line["client"], line["ingress_request_id"]) == ("127.0.0.1", "203.0.113.9", "ingress-7")
        assert line["decision"] != "ingress-7"
        assert gateway.cache.entries[minted.prefix].peer == "203.0.113.9"
        [raw] = recorder.trail.events.take(100)[0]
        event = report_parsing.event(json.loads(raw)).event
        assert event.address == "203.0.113.9"
        assert (event.details["peer"], event.details["ingress_request_id"]) == ("127.0.0.1", "ingress-7")


async def test_a_refusals_line_has_the_client_too() -> None:
    async with serving(answering(mirror), trusted=TRUSTED) as (gateway, _):
        recorder = recorded(gateway)
        assert (await (await gateway.client()).ask(get("/v1/things/7", *SAID))).status == 401
        recorder.flush()
        [line] = gateway.access
        assert (line["peer"], line["client"], line["ingress_request_id"]) == ("127.0.0.1", "203.0.113.9", "ingress-7")


async def test_of_any_other_peer_nothing_is_logged_or_kept() -> None:
    async with serving(answering(mirror), trusted=["10.0.0.0/8"]) as (gateway, _):
        recorder = recorded(gateway)
        minted = gateway.admit()
        client = await gateway.client()
        assert (await client.ask(get("/v1/things/7", f"Authorization: Bearer {minted.token}", *SAID))).status == 200
        recorder.flush()
        [line] = gateway.access
        assert line["peer"] == "127.0.0.1"
        assert not {"client", "ingress_request_id"} & line.keys()
        assert gateway.cache.entries[minted.prefix].peer == "127.0.0.1"
        [details] = events_of(gateway)
        assert not {"peer", "ingress_request_id"} & details.keys()


async def test_a_forward_auth_call_has_the_client_that_the_ingress_names() -> None:
    async with entry(trusted=TRUSTED, access="all") as gateway:
        minted = gateway.admit()
        described = ("X-Original-Method: GET", "X-Original-URI: /v1/things/7", *SAID)
        client = await gateway.client()
        answer = await client.ask(get("/nginx", f"Authorization: Bearer {minted.token}", *described))
        assert answer.status == 200
        assert b"ingress-7" not in answer.head
        gateway.recorder.flush()
        [line] = gateway.access
        assert (line["client"], line["ingress_request_id"]) == ("203.0.113.9", "ingress-7")
        assert gateway.cache.entries[minted.prefix].peer == "203.0.113.9"


@pytest.mark.parametrize("trusted", [TRUSTED, ()], ids=["trusted", "untrusted"])
@pytest.mark.parametrize("name", ["X-Request-Id", "X-Real-IP", "X-Forwarded-Prefix", "CF-Connecting-IP"])
async def test_a_token_in_such_a_field_is_misplaced_and_not_logged(name: str, trusted: tuple[str, ...]) -> None:
    async with serving(answering(mirror), trusted=trusted, believed=["CF-Connecting-IP"]) as (gateway, backend):
        recorder = recorded(gateway)
        token = gateway.admit().token
        answer = await (await gateway.client()).ask(get("/open/a", f"{name}: {token}"))
        assert (answer.status, answer.reason) == (400, "token_misplaced")
        recorder.flush()
        assert token not in json.dumps(gateway.access)
        assert backend.connections == []


async def test_the_request_id_that_is_logged_has_a_bound_and_plain_characters() -> None:
    async with serving(answering(mirror), trusted=TRUSTED) as (gateway, _):
        recorder = recorded(gateway)
        for value in ("a" * 129, 'a","b":"c', "a\tb", ""):
            await head_of(gateway, f"X-Request-Id: {value}")
        recorder.flush()
        assert len(gateway.access) == 4
        assert not any("ingress_request_id" in line for line in gateway.access)
