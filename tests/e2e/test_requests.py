"""Records of requests, over real sockets and processes: uses of tokens, events in the audit log, reports."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support import operate
from tests.support.gateway import Patgate, Token
from tests.support.leaks import secret_part
from tests.support.process import LOOPBACK, wait_until
from tests.support.rawhttp import Connection, ConnectionEnded, Response
from tests.support.recorder import Recorder

OWNER = "eve@example.org"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, backend: Recorder) -> Iterator[Patgate]:
    config = {
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [
            {"path": "/public/**", "upstream": "app", "access": "public"},
            {"path": "/trial/{entity}/{id}", "upstream": "app", "enforce": False},
            {"path": "/v1/{entity}", "upstream": "app"},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
        ],
    }
    with Patgate(tmp_path_factory.mktemp("requests"), config) as gateway:
        gateway.expects("child ended", "child did not start")
        gateway.add_user(OWNER, "editor")
        yield gateway


def rows(node: Patgate, query: str, *values: object) -> list[dict[str, Any]]:
    """The rows of a query on the store, read as another process may."""
    with closing(sqlite3.connect(f"file:{node.data / 'patgate.db'}?mode=ro", uri=True, timeout=30)) as store:
        store.row_factory = sqlite3.Row
        return [dict(row) for row in store.execute(query, values)]


def events(node: Patgate, *, path: str) -> list[dict[str, Any]]:
    """The events of requests for this path, oldest first."""
    found = rows(node, "SELECT * FROM audit_events WHERE action LIKE 'request%' ORDER BY n")
    parsed = [{**row, "details": json.loads(row["details"])} for row in found]
    return [row for row in parsed if row["details"].get("path") == path]


def event(node: Patgate, *, path: str) -> dict[str, Any]:
    """Wait for the only event of a request for this path and return it."""
    found = wait_until(lambda: events(node, path=path), f"an event of {path}", process=node.process)
    assert len(found) == 1
    return found[0]


def uses(node: Patgate, token: Token) -> int:
    found = rows(node, "SELECT use_count FROM token_usage WHERE token_id = ?", token.id)
    return int(found[0]["use_count"]) if found else 0


def ask(node: Patgate, method: str, path: str, headers: dict[str, str] | None = None) -> Response:
    with node.connect() as connection:
        return connection.request(method, path, headers=headers)


def test_when_and_from_where_a_token_was_used_last_and_how_often_is_shown(node: Patgate) -> None:
    token = node.token(OWNER, name="counted")
    connections = node.connection_to_each_worker()
    for connection in connections.values():
        with connection:
            for _ in range(3):
                assert connection.request("GET", "/v1/things/1", headers=token.bearer).status == 200
    wait_until(lambda: uses(node, token) == 6, "all uses", process=node.process)
    shown = node.cli("token", "show", token.id)
    assert (shown["use_count"], shown["last_used_ip"]) == (6, LOOPBACK)
    assert shown["last_used_at"] >= shown["created_at"]


def test_a_write_leaves_an_event_of_the_token_and_a_read_leaves_none(node: Patgate) -> None:
    token = node.token(OWNER, name="writer")
    response = ask(node, "GET", "/v1/things/reading", token.bearer)
    assert response.status == 200
    response = ask(node, "PUT", "/v1/things/writing?page=hidden", token.bearer)
    assert response.status == 200
    found = event(node, path="/v1/things/writing")
    owner = rows(node, "SELECT user_id FROM tokens WHERE id = ?", token.id)[0]["user_id"]
    assert (found["actor_kind"], found["actor_id"], found["actor_name"]) == ("pat", token.id, "writer")
    assert (found["user_id"], found["org_id"], found["level"], found["epoch"]) == (owner, "", "account", 0)
    assert (found["action"], found["target_kind"], found["target_id"]) == ("request.update", "route", "things/writing")
    assert (found["target_name"], found["outcome"], found["reason"]) == ("/v1/{entity}/{id}", "allowed", "allowed")
    assert found["address"] == LOOPBACK
    assert found["details"] == {"method": "PUT", "path": "/v1/things/writing", "status": 200}
    assert events(node, path="/v1/things/reading") == []


def test_a_refusal_is_found_by_the_decision_that_its_answer_names(node: Patgate) -> None:
    token = node.token(OWNER, name="narrow", scopes=["things:read"])
    revoked = node.token(OWNER, name="revoked")
    with node.control_socket() as control:
        control.revoke(revoked)
    for path, headers, reason, actor in (
        ("/v1/things/scoped", token.bearer, "scope_denies", ("pat", token.id, "narrow")),
        ("/v1/things/dead", revoked.bearer, "token_revoked", ("pat", revoked.id, "revoked")),
        ("/v1/things/nobody", {}, "no_credential", ("system", "", "")),
        # The gateway does not check the token, but the request carries it.
        ("/nowhere", token.bearer, "no_route", ("pat", token.id, "narrow")),
    ):
        response = ask(node, "DELETE", path, headers)
        assert response.status in (401, 403)
        found = event(node, path=path)
        assert found["decision_id"] == found["request_id"] == response.json()["decision"]
        assert (found["outcome"], found["reason"], found["details"]["status"]) == ("refused", reason, response.status)
        assert (found["actor_kind"], found["actor_id"], found["actor_name"]) == actor


def test_what_a_report_only_route_would_have_refused_is_an_event_and_is_added_up(node: Patgate) -> None:
    token = node.token(OWNER, name="reported", scopes=["things:read"])
    decisions = []
    for number in range(3):
        response = ask(node, "DELETE", f"/trial/things/{number}", token.bearer)
        assert response.status == 200, "it was let through"
        found = event(node, path=f"/trial/things/{number}")
        assert (found["outcome"], found["reason"], found["actor_id"]) == ("reported", "scope_denies", token.id)
        decisions.append(found["decision_id"])

    def report() -> dict[str, Any] | None:
        found = rows(node, "SELECT * FROM route_reports WHERE token_id = ?", token.id)
        return found[0] if sum(row["count"] for row in found) == 3 else None

    found = wait_until(report, "the report", process=node.process)
    assert (found["route"], found["reason"]) == ("/trial/{entity}/{id}", "scope_denies")
    assert (found["permission"], found["method"]) == ("things:delete", "DELETE")
    assert found["decision_id"] == decisions[-1]
    assert found["first_at"] <= found["last_at"]


def test_neither_the_path_nor_the_target_of_an_event_has_a_secret(node: Patgate) -> None:
    token = node.token(OWNER, name="careless", scopes=["things:read"])
    assert ask(node, "PUT", f"/v1/things/{token.value}", token.bearer).status == 400
    found = event(node, path=f"/v1/things/{token.prefix}")
    assert found["target_id"] == f"things/{token.prefix}"
    assert secret_part(token.value)[:8] not in json.dumps(found)


def test_a_flood_of_strangers_is_a_few_events_and_a_count(node: Patgate) -> None:
    before = operate.metric(node, "patgate_audit_omitted_total") if "audit_omitted" in metrics(node) else 0
    with node.connect() as connection:
        for _ in range(500):
            assert connection.request("GET", "/v1/things/flood").status == 401
    wait_until(
        lambda: "audit_omitted" in metrics(node) and operate.metric(node, "patgate_audit_omitted_total") > before + 100,
        "what was left out to be counted",
        process=node.process,
    )
    told = "SELECT details FROM audit_events WHERE action = 'request.omitted'"
    wait_until(lambda: rows(node, told), "an event that says so", process=node.process)
    assert 0 < len(events(node, path="/v1/things/flood")) < 400


def metrics(node: Patgate) -> str:
    return node.control("GET", "/metrics").body.decode()


def test_what_a_worker_knows_when_it_is_told_to_end_is_not_lost(tmp_path: Path, recorder: Recorder) -> None:
    config = {
        "workers": 2,
        "upstreams": {"app": {"servers": [recorder.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
        "audit": {"requests": "all"},
    }
    with Patgate(tmp_path, config) as node:
        node.add_user(OWNER, "editor")
        token = node.token(OWNER)
        for number in range(20):
            assert ask(node, "GET", f"/v1/things/{number}", token.bearer).status == 200
        node.process.signal(signal.SIGTERM)
        node.process.wait()
        assert uses(node, token) == 20
        assert sum(len(events(node, path=f"/v1/things/{number}")) for number in range(20)) == 20


def test_the_setting_counts_from_a_reload_on(node: Patgate) -> None:
    token = node.token(OWNER, name="levels")
    try:
        operate.write(node, audit={"requests": "off"})
        operate.reload(node)
        assert ask(node, "PUT", "/v1/things/off", token.bearer).status == 200
        assert ask(node, "PUT", "/v1/things/off").status == 401
        operate.write(node, audit={"requests": "refused"})
        operate.reload(node)
        assert ask(node, "PUT", "/v1/things/refused", token.bearer).status == 200
        assert ask(node, "PUT", "/v1/things/refused").status == 401
        operate.write(node, audit={"requests": "all"})
        operate.reload(node)
        assert ask(node, "GET", "/v1/things/all", token.bearer).status == 200
        assert ask(node, "GET", "/public/all").status == 200
        assert event(node, path="/v1/things/all")["outcome"] == "allowed"
        assert event(node, path="/public/all")["actor_kind"] == "system"
        assert event(node, path="/v1/things/refused")["outcome"] == "refused"
        assert events(node, path="/v1/things/off") == []
    finally:
        operate.write(node, audit={})
        operate.reload(node)


def test_a_killed_authority_or_worker_holds_up_no_request_and_what_comes_after_is_counted(node: Patgate) -> None:
    token = node.token(OWNER, name="survivor")
    with node.connect() as connection:
        assert connection.request("PUT", "/v1/things/before", headers=token.bearer).status == 200
        event(node, path="/v1/things/before")
        # What the authority has received but not yet written is lost when it dies.
        wait_until(lambda: uses(node, token) == 1, "the first use", process=node.process)
        operate.settle_spares(node)  # without one, a start on a busy machine may take longer than the lease
        node.kill(node.authority_pid())
        # The request does not wait for the authority; a report that the dying authority receives is lost.
        assert connection.request("PUT", "/v1/things/during", headers=token.bearer).status == 200

        def heard() -> bool:
            assert connection.request("PUT", "/v1/things/again", headers=token.bearer).status == 200
            return bool(events(node, path="/v1/things/again"))

        wait_until(heard, "an event at the next authority", process=node.process)
    wait_until(lambda: uses(node, token) > 1, "uses at the next authority", process=node.process)
    node.kill(node.all_workers()[0])
    node.all_workers()
    wait_until(lambda: _served(node, token), "an answer", process=node.process)
    assert event(node, path="/v1/things/after")["outcome"] == "allowed"


def _served(node: Patgate, token: Token) -> bool:
    try:
        with Connection(node.port) as connection:
            return connection.request("PUT", "/v1/things/after", headers=token.bearer).status == 200
    except (OSError, ConnectionEnded):
        return False


def test_the_log_is_whole_after_all_that(node: Patgate) -> None:
    told = rows(node, "SELECT n, prev_hash, hash FROM audit_events ORDER BY n")
    assert [row["n"] for row in told] == list(range(1, len(told) + 1))
    assert all(row["prev_hash"] == before["hash"] for before, row in pairwise(told))
