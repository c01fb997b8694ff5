"""``explain`` on a running gateway: by token before a request, by decision id after it, and for report-only routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.operate import reload, write
from tests.support.pool import Pool
from tests.support.process import wait_until
from tests.support.rawhttp import Connection, Response
from tests.support.recorder import Recorder

OWNER: Final = "eve@example.org"
SOON: Final = "/soon/{entity}/{id}"
ROUTES: Final = (
    {"path": "/public/**", "upstream": "app", "access": "public"},
    {"path": "/never/**", "upstream": "app", "access": "denied"},
    {"path": "/later/{entity}/{id}", "upstream": "app", "enforce": False},
    # Used by one test only: reports from other tests could arrive while it counts.
    {"path": SOON, "upstream": "app", "enforce": False},
    {"path": "/only/{entity}", "upstream": "app", "host": "api.example"},
    {"path": "/orgs/{org}/{entity}/{id}", "upstream": "app"},
    {"path": "/v1/{entity}/{id}", "upstream": "app"},
)
CASES: Final = (
    ("plain", "GET", "/v1/things/7", "allowed"),
    ("plain", "GET", "/public/x", "allowed"),
    ("plain", "get", "/v1/things/7", "method_refused"),
    ("plain", "GET", "/v1/things/7;a", "target_not_canonical"),
    ("plain", "GET", "/v1/things/../7", "target_not_canonical"),
    ("plain", "GET", "/nowhere", "no_route"),
    ("plain", "GET", "/never/x", "route_denied"),
    ("plain", "GET", "/orgs/lab/things/7", "org_mismatch"),
    ("plain", "PURGE", "/v1/things/7", "operation_unmapped"),
    ("plain", "GET", "/v1/others/7", "role_denies"),
    ("narrow", "DELETE", "/v1/things/7", "scope_denies"),
    ("revoked", "GET", "/v1/things/7", "token_revoked"),
)


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    config = {
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}},
        "audit": {"requests": "all"},
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [*ROUTES],
    }
    with gateways.lend(config) as gateway:
        gateway.add_user(OWNER, "editor")
        yield gateway


@pytest.fixture(scope="module")
def tokens(node: Patgate) -> dict[str, Token]:
    found = {
        "plain": node.token(OWNER, name="plain"),
        "narrow": node.token(OWNER, name="narrow", scopes=["things:read"]),
        "revoked": node.token(OWNER, name="revoked"),
    }
    with node.control_socket() as control:
        control.revoke(found["revoked"])
    return found


def ask(node: Patgate, method: str, path: str, headers: Mapping[str, str], host: str = "gateway") -> Response:
    with node.connect() as connection:
        return connection.request(method, path, headers=dict(headers), host=host)


def explained(node: Patgate, token: Token, method: str, path: str, host: str = "") -> Any:
    with node.control_socket() as control:
        query = f"token={token.id}&method={method}&path={quote(path, safe='')}&host={host}"
        return control.call("GET", f"/explain?{query}")


def decided(node: Patgate, decision: str) -> Any:
    """The explanation of a decision, once the audit log has it."""
    with node.control_socket() as control:
        wait_until(
            lambda: control.call("GET", f"/audit?request={decision}")["items"],
            f"the decision {decision}",
            process=node.process,
        )
        return control.call("GET", f"/explain?decision={decision}")


def test_what_is_explained_is_what_clients_get(node: Patgate, tokens: dict[str, Token]) -> None:
    for name, method, path, reason in CASES:
        response = ask(node, method, path, tokens[name].bearer)
        told = explained(node, tokens[name], method, path)
        assert told["reason"] == reason, (method, path)
        if reason == "allowed":
            assert (response.status, told["verdict"], told["status"]) == (200, "allowed", None)
        else:
            assert (response.status, response.json()["reason"]) == (told["status"], told["public_reason"])
        assert response.all("www-authenticate") == told["challenge"]


def test_the_identity_that_is_explained_is_the_one_that_backends_get(
    node: Patgate, tokens: dict[str, Token], backend: Recorder
) -> None:
    for name, path in (("narrow", "/v1/things/7"), ("revoked", "/later/things/7"), ("narrow", "/later/others/7")):
        assert ask(node, "GET", path, tokens[name].bearer).status == 200
        got = {key: value for key, value in backend.last().headers if key.lower().startswith(b"x-auth-")}
        assert {
            header["name"].encode(): header["value"].encode()
            for header in explained(node, tokens[name], "GET", path)["identity"]
        } == got


def test_every_refusal_can_be_explained_afterwards_by_its_decision_id(node: Patgate, tokens: dict[str, Token]) -> None:
    """The requests run one by one, because few events of refusals without a verified token are kept at a time."""
    for name, method, path, reason in CASES:
        response = ask(node, method, path, tokens[name].bearer)
        if reason == "allowed":
            continue
        told = decided(node, response.json()["decision"])
        then, now = told["then"], told["now"]
        assert (then["verdict"], then["reason"], then["method"], then["path"]) == ("refused", reason, method, path)
        assert then["token_id"] == tokens[name].id
        assert (now["verdict"], now["reason"]) == ("refused", reason)
        assert told["differences"] == []


REQUIRED: Final = (
    ("plain", "GET", "/v1/others/7", "entity=things&operation=update", "allowed"),
    ("plain", "GET", "/v1/things/7", "entity=others&operation=read&id=9", "role_denies"),
    ("narrow", "GET", "/v1/things/7", "entity=things&operation=update&id=9", "scope_denies"),
    ("narrow", "DELETE", "/later/things/7", "operation=read&entity=things", "allowed"),
    ("plain", "GET", "/public/x", "entity=others&operation=read", "role_denies"),
    ("plain", "GET", "/nowhere", "entity=things&operation=read", "allowed"),
    ("narrow", "GET", "/nowhere", "entity=things&operation=update", "scope_denies"),
    ("plain", "GET", "/nowhere", "entity=things&operation=read&org=lab", "org_mismatch"),
    ("plain", "GET", "/orgs/lab/things/7", "entity=things&operation=read&org=shop", "org_mismatch"),
    ("plain", "GET", "/never/x", "entity=things&operation=read", "route_denied"),
    ("plain", "GET", "/v1/things/../7", "entity=things&operation=read", "target_not_canonical"),
    ("revoked", "GET", "/v1/things/7", "entity=things&operation=update", "token_revoked"),
)
"""Token, method and path of a request, the requirement of its ingress, and the reason of the verdict."""


def test_a_decision_by_the_requirement_of_an_ingress_is_explained_by_that_requirement(
    node: Patgate, tokens: dict[str, Token]
) -> None:
    decisions = []
    with Connection(node.forward_auth_port) as connection:
        for name, method, path, requirement, reason in REQUIRED:
            fields = tokens[name].bearer | {"X-Original-Method": method, "X-Original-URI": path}
            response = connection.request("GET", f"/nginx?{requirement}", headers=fields)
            assert (response.status == 200) is (reason == "allowed")
            decisions.append((response.get("X-Request-Id") or "", requirement, reason))
    for decision, requirement, reason in decisions:
        explained = decided(node, decision)
        then, now = explained["then"], explained["now"]
        assert (then["reason"], now["reason"], explained["differences"], explained["notes"]) == (reason, reason, [], [])
        assert set(then["requirement"].split("&")) == set(requirement.split("&"))
        assert now["requirement"] == then["requirement"]
        assert sum(step["result"] == "fail" for step in now["steps"]) == (reason != "allowed")
        if reason in ("allowed", "role_denies", "scope_denies"):
            given = dict(pair.split("=") for pair in requirement.split("&"))
            assert (now["entity"], now["operation"]) == (given["entity"], given["operation"])
        if requirement == REQUIRED[0][3]:
            assert f"  requirement  {requirement}\n" in node.run("explain", decision).stdout


def test_a_refusal_on_a_route_for_one_host_is_explained_with_that_host(node: Patgate, tokens: dict[str, Token]) -> None:
    response = ask(node, "DELETE", "/only/things", tokens["plain"].bearer, host="api.example")
    told = decided(node, response.json()["decision"])
    assert (told["then"]["host"], told["now"]["reason"], told["differences"]) == (
        "api.example",
        "operation_unmapped",
        [],
    )


def test_enforcing_a_route_refuses_exactly_what_it_reported(node: Patgate, tokens: dict[str, Token]) -> None:
    asked = [
        ("plain", "GET", "/soon/things/1"),
        ("plain", "GET", "/soon/trials/1"),
        ("narrow", "PUT", "/soon/things/1"),
        ("narrow", "GET", "/soon/things/1"),
        ("revoked", "GET", "/soon/things/1"),
    ]
    reported = {case for case in asked if explained(node, tokens[case[0]], case[1], case[2])["verdict"] == "reported"}
    for name, method, path in asked:
        assert ask(node, method, path, tokens[name].bearer).status == 200

    def listed() -> Any:
        with node.control_socket() as control:
            items = control.call("GET", "/routes/report")["items"]
        return sum(row["count"] for row in items if row["route"] == SOON) >= len(reported)

    wait_until(listed, "the report", process=node.process)
    rows = node.cli("routes", "report", "--route", SOON)
    assert {(row["reason"], row["status"], row["count"], row["enforce"]) for row in rows} == {
        ("role_denies", 403, 1, False),
        ("scope_denies", 403, 1, False),
        ("token_revoked", 401, 1, False),
    }
    lacking = {each["permission"] for row in rows for each in row["permissions"]}
    assert lacking == {"trials:read", "things:update", "things:read"}
    assert {each["name"] for row in rows for each in row["tokens"]} == {"plain", "narrow", "revoked"}

    enforced = [{**route, "enforce": True} if route["path"] == SOON else route for route in ROUTES]
    write(node, routes=enforced)
    reload(node)
    try:
        refused = {case for case in asked if ask(node, case[1], case[2], tokens[case[0]].bearer).status != 200}
        assert refused == reported
        assert {explained(node, tokens[name], method, path)["verdict"] for name, method, path in reported} == {
            "refused"
        }
    finally:
        write(node, routes=[*ROUTES])
        reload(node)
