"""IP ranges of a token and the client's address: through the proxy, forward auth and the control API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Patgate, Token, token_of
from tests.support.plugin import EDITOR, ROLES, ROUTES
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, wait_until
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorder

INGRESS = "127.0.0.2"
INSIDE, OUTSIDE = "203.0.113.9", "198.51.100.1"
RANGES = ["203.0.113.0/24", "2001:db8::/32", "127.0.0.3"]
TARGET = "/v1/things/42"


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    """A node that believes ``INGRESS`` and a proxy in front of it, at the proxy and in forward auth."""
    trusted = [f"{INGRESS}/32", "10.0.0.0/8"]
    config: dict[str, Any] = {
        "workers": 1,
        "listen": {"proxy": {"trusted": trusted}, "forward_auth": {"trusted": trusted}},
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": ROLES,
        "routes": ROUTES,
        "log": {"access": "all"},
        "audit": {"requests": "all"},
    }
    with gateways.lend(config) as node:
        node.add_user(EDITOR, "editor")
        yield node


def made(node: Patgate, name: str, *ranges: str) -> Token:
    options = [option for text in ranges for option in ("--ip", text)]
    return token_of(node.cli("token", "create", "--user", EDITOR, "--name", name, *options))


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return made(node, "restricted", *RANGES)


def through_proxy(node: Patgate, token: Token, source: str, *fields: tuple[str, str]) -> Response:
    with Connection(node.port, source=source) as connection:
        return connection.exchange(head(f"GET {TARGET}", token, fields))


def by_forward_auth(node: Patgate, token: Token, source: str, *fields: tuple[str, str]) -> Response:
    described = (("X-Original-Method", "GET"), ("X-Original-URI", TARGET), *fields)
    with Connection(node.forward_auth_port, source=source) as connection:
        return connection.exchange(head("GET /nginx", token, described))


def head(line: str, token: Token, fields: tuple[tuple[str, str], ...]) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: app.example.org", f"Authorization: Bearer {token.value}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in fields), "", ""]).encode("latin-1")


FORWARDED = "X-Forwarded-For"
BY_INGRESS: dict[str, tuple[tuple[tuple[str, str], ...], bool]] = {
    "a client inside": (((FORWARDED, INSIDE),), True),
    "a client inside, by IPv6": (((FORWARDED, "[2001:db8::7]:4711"),), True),
    "a client inside, written as IPv6": (((FORWARDED, f"::ffff:{INSIDE}"),), True),
    "a client inside, behind two proxies": (((FORWARDED, f"{INSIDE}, 10.1.1.1"),), True),
    "a client inside, in two lines": (((FORWARDED, OUTSIDE), (FORWARDED, INSIDE)), True),
    "a client inside, by X-Real-IP": ((("X-Real-IP", INSIDE),), True),
    "a client outside": (((FORWARDED, OUTSIDE),), False),
    "a client outside that claims to be inside": (((FORWARDED, f"{INSIDE}, {OUTSIDE}"),), False),
    "the same in lines of its own": (((FORWARDED, INSIDE), (FORWARDED, OUTSIDE)), False),
    "the same behind two proxies": (((FORWARDED, f"{INSIDE}, {OUTSIDE}, 10.1.1.1"),), False),
    "a client outside that sends X-Real-IP": (((FORWARDED, OUTSIDE), ("X-Real-IP", INSIDE)), False),
    "no address": ((), False),
    "an empty list": (((FORWARDED, ""), ("X-Real-IP", INSIDE)), False),
    "something that is no address": (((FORWARDED, f"{INSIDE}, unknown"),), False),
    "a header that is not read": ((("Forwarded", f"for={INSIDE}"), ("True-Client-IP", INSIDE)), False),
    "another spelling": ((("X_Forwarded_For", INSIDE), ("X-Real.IP", INSIDE)), False),
}


@pytest.mark.parametrize("ask", [through_proxy, by_forward_auth], ids=["proxy", "forward auth"])
@pytest.mark.parametrize("case", BY_INGRESS)
def test_the_address_that_a_trusted_ingress_names_decides(case: str, ask: Any, node: Patgate, token: Token) -> None:
    fields, inside = BY_INGRESS[case]
    response = ask(node, token, INGRESS, *fields)
    if inside:
        assert response.status == 200, response.body
        return
    assert response.status == 403
    assert response.json()["reason"] == "address_refused"
    assert response.all("WWW-Authenticate") == []
    assert not any(text in response.body.decode() for text in ("203.0.113", "2001:db8", "127.0.0", "10.", OUTSIDE))


@pytest.mark.parametrize("fields", [((FORWARDED, INSIDE),), (("X-Real-IP", INSIDE),), ()])
def test_a_claim_about_the_address_from_an_untrusted_peer_is_never_believed(
    fields: tuple[tuple[str, str], ...], node: Patgate, token: Token
) -> None:
    assert through_proxy(node, token, LOOPBACK, *fields).json()["reason"] == "address_refused"
    # This peer may use the token itself, and cannot talk itself out of it either.
    assert through_proxy(node, token, "127.0.0.3", *fields, (FORWARDED, OUTSIDE)).status == 200
    assert by_forward_auth(node, token, LOOPBACK, *fields).json()["reason"] == "peer_untrusted"


def test_log_audit_and_the_tokens_last_use_have_the_client_and_the_ingresses_request_id(
    node: Patgate, token: Token
) -> None:
    free = made(node, "anywhere")
    fields = ((FORWARDED, f"{OUTSIDE}:4711, 10.1.1.1"), ("X-Request-Id", "ingress-42"))
    refused = through_proxy(node, token, INGRESS, *fields)
    decision = refused.json()["decision"]
    assert refused.get("X-Request-Id") == decision != "ingress-42"
    assert through_proxy(node, free, INGRESS, *fields).status == 200

    def lines() -> list[dict[str, Any]]:
        return [one for one in node.records() if one.get("decision") == decision and one["event"] == "request"]

    wait_until(lambda: bool(lines()), "the line of the refusal", process=node.process)
    [line] = lines()
    assert (line["reason"], line["peer"], line["client"]) == ("address_refused", INGRESS, OUTSIDE)
    assert line["ingress_request_id"] == "ingress-42"

    def recorded() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = node.cli("audit", "--token", "restricted", "--denied")
        return [event for event in found if event["decision_id"] == decision]

    wait_until(lambda: bool(recorded()), "the event of the refusal", process=node.process)
    [event] = recorded()
    assert (event["address"], event["reason"]) == (OUTSIDE, "address_refused")
    assert (event["details"]["peer"], event["details"]["ingress_request_id"]) == (INGRESS, "ingress-42")

    def shown() -> dict[str, Any]:
        document: dict[str, Any] = node.cli("token", "show", free.id)
        return document

    wait_until(lambda: shown()["use_count"] == 1, "the use of the token", process=node.process)
    assert shown()["last_used_ip"] == OUTSIDE
    now = node.cli("explain", decision)
    assert (now["then"]["address"], now["now"]["reason"], now["differences"]) == (OUTSIDE, "address_refused", [])
    node.cli("token", "ips", "set", token.id, *RANGES, OUTSIDE)
    assert node.cli("explain", decision)["differences"] == ["it was refused, now it would be allowed"]
    node.cli("token", "ips", "set", token.id, *RANGES)


def test_prefix_port_and_address_go_on_from_the_ingress_only(node: Patgate, recorder: Recorder) -> None:
    free = made(node, "headers")
    said = (("X-Forwarded-Prefix", "/npm"), ("X-Forwarded-Port", "8443"), ("X-Real-IP", INSIDE))
    assert through_proxy(node, free, INGRESS, *said).status == 200
    seen = recorder.last()
    assert [seen.all(name) for name, _ in said] == [[value.encode()] for _, value in said]
    assert through_proxy(node, free, LOOPBACK, *said).status == 200
    assert [recorder.last().all(name) for name, _ in said] == [[], [], []]


def test_the_control_api_judges_a_restricted_token_by_its_own_peer(node: Patgate, token: Token) -> None:
    def me(source: str, **headers: str) -> Response:
        with Connection(node.control_port, source=source) as connection:
            return connection.request(
                "GET", "/api/v1/me", headers={**token.bearer, **headers}, host=f"{LOOPBACK}:{node.control_port}"
            )

    assert me("127.0.0.3").status == 200
    for source in (LOOPBACK, INGRESS):
        refused = me(source, **{FORWARDED: INSIDE})
        assert (refused.status, refused.json()["reason"]) == (403, "address_refused")
        assert "203.0.113" not in refused.body.decode()


def test_the_gateway_and_explain_agree(node: Patgate, token: Token) -> None:
    for address in (INSIDE, OUTSIDE, "2001:db8::7"):
        status = through_proxy(node, token, INGRESS, (FORWARDED, address)).status
        explained = node.cli("explain", token.id, "GET", TARGET, "--ip", address)
        assert (explained["status"] or 200, explained["ip"]) == (status, address)


def test_a_second_target_is_judged_from_the_same_address(node: Patgate) -> None:
    there = made(node, "copies", INSIDE)
    copy = (("Destination", "/v1/things/43"),)
    assert through_proxy(node, there, INGRESS, (FORWARDED, INSIDE), *copy).status == 200
    assert through_proxy(node, there, INGRESS, (FORWARDED, OUTSIDE), *copy).json()["reason"] == "address_refused"
