"""The control API of a running gateway over real sockets: only a token gives access."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, wait_until
from tests.support.rawhttp import Connection, Response

ADMIN, MEMBER = "root@example.org", "ada@example.org"


@pytest.fixture(scope="module")
def node(gateways: Pool) -> Iterator[Patgate]:
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [f"http://{LOOPBACK}:1"]}},
        "roles": {"admin": ["*:*"], "viewer": ["things:read", "patgate.members:list"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }
    with gateways.lend(config) as node:
        node.add_user(ADMIN, "admin")
        with node.control_socket() as control:
            control.call("POST", "/orgs", {"name": "red"})
            control.call("POST", "/users", {"email": MEMBER, "role": "viewer", "org": "red"})
        yield node


class Client:
    """The API over one kept-alive connection, with a token or without one."""

    def __init__(self, node: Patgate, token: Token | None) -> None:
        self._host = f"{LOOPBACK}:{node.control_port}"
        self._headers = {} if token is None else token.bearer
        self.connection = Connection(node.control_port)

    def ask(self, method: str, path: str, document: Any = None) -> Response:
        body = b"" if document is None else json.dumps(document).encode()
        headers = {**self._headers, **({"Content-Type": "application/json"} if body else {})}
        return self.connection.request(method, "/api/v1" + path, headers=headers, body=body, host=self._host)


Ask = Callable[[Token | None], Client]


@pytest.fixture
def client(node: Patgate) -> Iterator[Ask]:
    """Makes clients, and closes their connections at the end of the test."""
    with ExitStack() as stack:

        def connect(token: Token | None) -> Client:
            made = Client(node, token)
            stack.enter_context(made.connection)
            return made

        yield connect


def test_what_an_administrator_may_do_and_a_member_may_not(node: Patgate, client: Ask) -> None:
    admin, member = client(node.token(ADMIN)), client(node.token(MEMBER))
    assert admin.ask("GET", "/users").status == 200
    assert member.ask("GET", "/users").status == 403
    assert admin.ask("PUT", "/roles/temp", {"permissions": ["things:read"]}).status == 200
    assert member.ask("PUT", "/roles/temp", {"permissions": ["*:*"]}).status == 403
    assert admin.ask("GET", "/orgs/red/members").json()["items"][0]["email"] == MEMBER
    assert member.ask("GET", "/me").json()["user"]["email"] == MEMBER


def test_a_token_makes_and_ends_others_of_its_owner(node: Patgate, client: Ask) -> None:
    member = client(node.token(MEMBER))
    made = member.ask("POST", "/orgs/red/tokens", {"name": "team", "scopes": ["things:read"]})
    # A personal token reaches no organisation, so it cannot create an organisation's token.
    assert made.status in (403, 404)
    made = member.ask("POST", "/tokens", {"name": "child", "scopes": ["things:read"], "expires": 3600})
    assert made.status == 201
    child = Token(id=made.json()["id"], prefix=made.json()["prefix"], value=made.json()["token"])
    assert client(child).ask("GET", "/me").json()["scopes"] == ["things:read"]
    wider = client(child).ask("POST", "/tokens", {"name": "wider", "expires": 60})
    assert (wider.status, [error["field"] for error in wider.json()["errors"]]) == (403, ["scopes"])
    longer = client(child).ask("POST", "/tokens", {"name": "longer", "scopes": ["things:read"]})
    assert (longer.status, [error["field"] for error in longer.json()["errors"]]) == (403, ["expires"])
    assert member.ask("DELETE", f"/tokens/{child.id}").status == 200
    assert client(child).ask("GET", "/me").status == 401


@pytest.mark.parametrize("end", ["revoke", "rotate", "delete", "suspend", "downgrade"])
def test_a_kept_connection_has_the_new_verdict_at_once(node: Patgate, client: Ask, end: str) -> None:
    """The verdict is new for the next request after the response, on a connection that was allowed before."""
    email = node.add_user(f"{end}@example.org", "admin")
    token = node.token(email)
    kept = client(token)
    assert kept.ask("GET", "/users?limit=1").status == 200
    with node.control_socket() as control:
        match end:
            case "revoke":
                control.revoke(token)
            case "rotate":
                control.rotate(token)
            case "delete":
                control.call("DELETE", f"/tokens/{token.id}")
            case "suspend":
                control.suspend(email)
            case _:
                control.set_role(email, "viewer")
    assert kept.ask("GET", "/users?limit=1").status == (403 if end == "downgrade" else 401)


def test_a_key_reads_what_its_role_allows_and_changes_nothing(node: Patgate, client: Ask) -> None:
    with node.control_socket() as control:
        made = control.call("POST", "/orgs/red/keys", {"name": "reader", "role": "admin"})
    key = client(Token(id=made["id"], prefix=made["prefix"], value=made["token"]))
    assert key.ask("GET", "/orgs/red/members").status == 200
    assert key.ask("GET", "/me").json()["kind"] == "key"
    for method, path, body in (
        ("POST", "/tokens", {"name": "x"}),
        ("POST", "/orgs/red/keys", {"name": "x", "role": "viewer"}),
        ("DELETE", f"/orgs/red/members/{MEMBER}", None),
        ("PUT", "/orgs/red/policy", {}),
        ("PATCH", "/orgs/red/policy", {}),
    ):
        assert key.ask(method, path, body).status == 403, path


def test_a_head_is_a_get_without_its_body_and_other_methods_are_refused(node: Patgate, client: Ask) -> None:
    admin = client(node.token(ADMIN))
    head = admin.ask("HEAD", "/users")
    assert (head.status, head.body) == (200, b"")
    refused = admin.ask("PATCH", "/users", {})
    assert (refused.status, refused.json()["reason"]) == (405, "method_not_allowed")
    assert admin.ask("GET", "/nothing").status == 404


def test_nobody_sees_anything_but_health_and_the_document(node: Patgate, client: Ask) -> None:
    nobody = client(None)
    assert nobody.ask("GET", "/openapi.json").json()["openapi"] == "3.1.0"
    refused = nobody.ask("GET", "/users")
    assert (refused.status, refused.json()["reason"]) == (401, "no_credential")
    assert node.control("GET", "/livez").status == 200


def test_a_refusal_is_counted_and_logged_under_its_decision(node: Patgate, client: Ask) -> None:
    token = node.token(MEMBER)
    refused = client(token).ask("GET", "/users")
    decision = refused.json()["decision"]
    (record,) = wait_until(
        lambda: [record for record in node.records() if record.get("decision") == decision], "the line of the refusal"
    )
    assert (record["operation"], record["status"], record["reason"]) == ("users.list", 403, "forbidden")
    assert b'patgate_api_refusals_total{reason="forbidden"}' in node.control("GET", "/metrics").body
