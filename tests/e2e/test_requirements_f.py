"""Requirements F1 to F5: revoked tokens stay revoked, decisions can be explained, and trial rules are counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.api import Api, cli, soon, status, through
from tests.support.gateway import Patgate, token_of
from tests.support.pool import Pool
from tests.support.rawhttp import request_bytes
from tests.support.recorder import Recorder

ADA, EVE, VIC = "ada@example.org", "eve@example.org", "vic@example.org"
OWN, TRIAL, TRIALS = "/v1/things/7", "/trial/things/7", "/trial/{entity}/{id}"


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    config = {
        "workers": 2,
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"admin": ["*:*"], "editor": ["things:*"], "viewer": ["things:read"]},
        "routes": [
            {"path": "/trial/{entity}/{id}", "upstream": "app", "enforce": False},
            {"path": "/pilot/{entity}/{id}", "upstream": "app", "enforce": False},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
        ],
    }
    with gateways.lend(config) as gateway:
        for email, role in ((ADA, "admin"), (EVE, "editor"), (VIC, "viewer")):
            gateway.add_user(email, role)
        yield gateway


@pytest.fixture(scope="module")
def ada(node: Patgate) -> Api:
    return Api(node, node.token(ADA, name="admin"))


@pytest.fixture(scope="module")
def vic(node: Patgate) -> Api:
    return Api(node, node.token(VIC, name="of vic"))


def test_f1_what_the_api_has_answered_every_worker_keeps_to(node: Patgate) -> None:
    """Uses one of the owner's tokens; test_freshness.py has every kind of change, under load."""
    eve = Api(node, node.token(EVE, name="master"))
    workers = list(node.connection_to_each_worker().values())
    try:
        for number in range(8):
            token = eve.mint(f"short-lived {number}")
            for connection in workers:
                assert connection.request("PUT", OWN, headers=token.bearer).status == 200
            eve.call("PUT", f"/tokens/{token.id}/scopes", {"scopes": ["things:read"]})
            for connection in workers:
                assert connection.request("PUT", OWN, headers=token.bearer).status == 403
            eve.verb(token, "revoke")
            for connection in workers:
                assert connection.request("GET", OWN, headers=token.bearer).status == 401
    finally:
        for connection in workers:
            connection.close()


def test_f3_what_a_token_gets_for_a_method_and_path_is_explained(node: Patgate, vic: Api) -> None:
    narrow = vic.mint("narrow", scopes=["things/8:read"])
    cases = {
        (vic.token.id, "GET", OWN): ("allowed", "allowed"),
        (vic.token.id, "PUT", OWN): ("refused", "role_denies"),
        (narrow.id, "GET", OWN): ("refused", "scope_denies"),
        (narrow.id, "GET", "/v1/things/8"): ("allowed", "allowed"),
        (vic.token.id, "GET", "/v1//things"): ("refused", "target_not_canonical"),
        (vic.token.id, "GET", "/nowhere"): ("refused", "no_route"),
        (vic.token.id, "PUT", "/pilot/things/7"): ("reported", "role_denies"),
    }
    for (token, method, path), expected in cases.items():
        told = vic.call("GET", "/explain", token=token, method=method, path=path)
        assert (told["verdict"], told["reason"]) == expected, (method, path)
        # The gateway makes the same decision.
        holder = vic.token if token == vic.token.id else narrow
        met = through(node, method, path, holder)
        assert (met.status == 200) == (told["verdict"] != "refused")
        if told["verdict"] == "refused":
            assert (met.status, met.json()["reason"]) == (told["status"], told["public_reason"])
    told = vic.call("GET", "/explain", token=vic.token.id, method="GET", path=OWN)
    assert (told["route"], told["operation"]) == ("/v1/{entity}/{id}", "read")
    assert (told["entity"], told["entity_id"], told["role"], told["role_entry"]) == (
        "things",
        "7",
        "viewer",
        "things:read",
    )
    told = cli(node, "explain", narrow.prefix, "GET", OWN)
    assert (told["reason"], told["scopes"]) == ("scope_denies", ["things/8:read"])
    # A token is explained only to its owner and to administrators.
    eve = Api(node, node.token(EVE, name="curious"))
    assert eve.refusal("GET", "/explain", token=vic.token.id, method="GET", path=OWN)[0] == 404


def test_f3_every_refusal_has_a_decision_that_the_log_has_and_that_is_explained(node: Patgate, vic: Api) -> None:
    refused = through(node, "DELETE", OWN, vic.token)
    decision = refused.json()["decision"]
    assert (refused.status, refused.get("X-Request-Id")) == (403, decision)
    with node.connect() as connection:
        malformed = connection.exchange(request_bytes("GET", "/v1/../things", headers=vic.token.bearer))
    decisions = (decision, str(malformed.json()["decision"]))
    soon(lambda: all(wanted in node.log for wanted in decisions), "the lines of the log", node)

    def told() -> Any:
        answer = vic.ask("GET", "/explain", query={"decision": decision})
        return answer.json() if answer.status == 200 else None

    explained = soon(told, "the explanation of a decision", node)
    then = explained["then"]
    assert (then["method"], then["path"], then["verdict"], then["reason"]) == ("DELETE", OWN, "refused", "role_denies")
    assert explained["now"]["reason"] == "role_denies"
    with node.control_socket() as control:
        control.set_role(VIC, "editor")
    try:
        later = cli(node, "explain", decision)
        assert (later["then"]["reason"], later["now"]["verdict"]) == ("role_denies", "allowed")
    finally:
        with node.control_socket() as control:
            control.set_role(VIC, "viewer")


def test_f4_a_report_only_route_lets_through_counts_and_logs_what_it_would_refuse(
    node: Patgate, ada: Api, vic: Api, recorder: Recorder
) -> None:
    ended = vic.mint("ended")
    vic.verb(ended, "revoke")
    for token, method in ((vic.token, "PUT"), (vic.token, "PUT"), (ended, "GET"), (None, "GET")):
        assert status(node, method, TRIAL, token) == 200
        assert recorder.last().target == TRIAL.encode(), "the backend got it"
    assert status(node, "GET", TRIAL, vic.token) == 200, "what is allowed is no report"

    def reported() -> dict[str, int] | None:
        counts = {row["reason"]: row["count"] for row in ada.items("/routes/report") if row["route"] == TRIALS}
        return counts if sum(counts.values()) >= 4 else None

    assert soon(reported, "the report", node) == {"role_denies": 2, "token_revoked": 1, "no_credential": 1}
    rows = [row for row in cli(node, "routes", "report") if row["route"] == TRIALS]
    (row,) = [row for row in rows if row["reason"] == "role_denies"]
    assert (row["count"], row["enforce"]) == (2, False)
    assert row["permissions"] == [{"permission": "things:update", "count": 2}]
    assert [(token["id"], token["count"]) for token in row["tokens"]] == [(vic.token.id, 2)]
    # The decision is in the audit log, in the request log and in the metrics too.
    events = ada.items("/audit", outcome="reported", actor=vic.token.id, reason="role_denies")
    assert row["last_decision"] in {event["decision_id"] for event in events}
    soon(lambda: row["last_decision"] in node.log, "the line of the log", node)
    page = node.control("GET", "/metrics").body.decode()
    assert 'outcome="reported"' in page
    assert vic.ask("GET", "/routes/report").status == 403, "a report is for administrators"
    assert ada.call("DELETE", "/routes/report")["cleared"] >= 3
    assert not [row for row in ada.items("/routes/report") if row["route"] == TRIALS]


def test_f5_the_backend_gets_the_path_that_was_authorised_byte_for_byte(
    node: Patgate, recorder: Recorder, vic: Api
) -> None:
    """A few paths; tests/threats/test_s1_paths.py and tests/differential cover every known trick."""
    token = token_of(cli(node, "token", "rotate", vic.mint("paths").id))
    for target in ("/v1/things/a%20b", "/v1/things/%C3%A9?next=/v1/../x", "/v1/things/~a-b_c.d"):
        assert status(node, "GET", target, token) == 200
        assert recorder.last().target == target.encode()
    recorder.clear()
    for target in ("/v1/things/..", "/v1/things/%2e%2e", "/v1//things", "/v1/things/a%2Fb", "/v1/things/a;b"):
        assert status(node, "GET", target, token) == 400
    assert recorder.requests == []
