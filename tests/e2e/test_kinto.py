"""A REST API without any knowledge of tokens (Kinto, in memory): nine operations, each allowed by its scope alone.

Kinto has records with ids in collections, and groups: a group lists the users that a thing is shared with, so PUT of it
shares the thing and DELETE of it unshares it. Every verdict is checked against Kinto's own state, read directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.backends import program
from tests.support.gateway import Patgate, Token, token_of
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, free_port, wait_until
from tests.support.rawhttp import Connection, Response
from tests.support.tap import Tap

SETTINGS = """\
[server:main]
use = egg:waitress#main
host = 127.0.0.1
port = {port}
threads = 4

[app:main]
use = egg:kinto
kinto.storage_backend = kinto.core.storage.memory
kinto.permission_backend = kinto.core.permission.memory
kinto.cache_backend = kinto.core.cache.memory
kinto.userid_hmac_secret = only-for-tests
kinto.bucket_create_principals = system.Everyone
multiauth.policies = basicauth
"""

BUCKET = "/v1/buckets/main"
RECORDS = BUCKET + "/collections/things/records"
MESSAGES = "/v1/buckets/channels/collections/news/records"

ROUTES = [
    {
        "path": "/v1/buckets/channels/collections/{id}/records",
        "upstream": "kinto",
        "entity": "channels",
        "operations": {"POST": "publish", "GET": "subscribe"},
    },
    {
        "path": "/v1/buckets/main/groups/{id}",
        "upstream": "kinto",
        "entity": "things",
        "operations": {"PUT": "share", "DELETE": "unshare"},
    },
    {"path": "/v1/buckets/main/collections/{entity}/records", "upstream": "kinto"},
    {"path": "/v1/buckets/main/collections/{entity}/records/{id}", "upstream": "kinto"},
]
OPERATIONS = {
    "create": "things:create",
    "read": "things:read",
    "list": "things:list",
    "update": "things:update",
    "delete": "things:delete",
    "share": "things:share",
    "unshare": "things:unshare",
    "publish": "channels:publish",
    "subscribe": "channels:subscribe",
}


def call(port: int, method: str, target: str, token: Token | None = None, document: Any = None) -> Response:
    headers = dict(token.bearer) if token else {}
    body = b""
    if document is not None:
        headers["Content-Type"] = "application/json"
        body = json.dumps(document).encode()
    with Connection(port) as connection:
        return connection.request(method, target, headers=headers, body=body, host=f"{LOOPBACK}:{port}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kinto:
    port: int

    def get(self, target: str) -> Any:
        """The data at a path; None if Kinto has none."""
        response = call(self.port, "GET", target)
        assert response.status in (200, 404), response.body
        return response.json()["data"] if response.status == 200 else None

    def put(self, target: str, document: Any) -> None:
        response = call(self.port, "PUT", target, document=document)
        assert response.status in (200, 201), response.body

    def remove(self, target: str) -> None:
        assert call(self.port, "DELETE", target).status in (200, 404)

    def state(self) -> Any:
        """Everything that any of the nine operations could change."""
        groups = self.get(BUCKET + "/groups")
        return self.get(RECORDS), groups, self.get(MESSAGES)


@pytest.fixture(scope="module")
def kinto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kinto]:
    directory = tmp_path_factory.mktemp("kinto")
    port = free_port()
    settings = directory / "kinto.ini"
    settings.write_text(SETTINGS.format(port=port))
    with Process([program("pserve"), str(settings)], name="kinto", directory=directory) as process:

        def serves() -> bool:
            try:
                return call(port, "GET", "/v1/").status == 200
            except OSError:
                return False

        wait_until(serves, "Kinto serving", process=process)
        server = Kinto(port=port)
        for bucket, collection in (("main", "things"), ("channels", "news")):
            server.put(f"/v1/buckets/{bucket}", {"permissions": {"write": ["system.Everyone"]}})
            server.put(f"/v1/buckets/{bucket}/collections/{collection}", {})
        yield server


@pytest.fixture(scope="module")
def node(gateways: Pool, kinto: Kinto) -> Iterator[Patgate]:
    with Tap(kinto.port, "Kinto") as tap:
        config = {
            "upstreams": {"kinto": {"servers": [tap.url]}},
            "roles": {"editor": ["things:*", "channels:*"], "viewer": ["things:read", "things:list"]},
            "routes": ROUTES,
        }
        with gateways.lend(config) as gateway:
            gateway.add_user("eve@example.org", "editor")
            gateway.add_user("vic@example.org", "viewer")
            yield gateway


@pytest.fixture(scope="module")
def tokens(node: Patgate) -> dict[str, Token]:
    """For each operation, a token with that scope alone and one with the eight others."""
    made = {}
    with node.control_socket() as control:
        for operation, scope in OPERATIONS.items():
            made[operation] = control.create_token("eve@example.org", name=operation, scopes=[scope])
            others = [other for other in OPERATIONS.values() if other != scope]
            made["all but " + operation] = control.create_token(
                "eve@example.org", name=f"all but {operation}", scopes=others
            )
    return made


@pytest.fixture
def thing(kinto: Kinto) -> Iterator[str]:
    """A record that exists and is shared with a group before the operation; and a message in the channel."""
    kinto.put(f"{RECORDS}/lamp", {"data": {"colour": "red"}})
    kinto.put(f"{BUCKET}/groups/lamp", {"data": {"members": ["basicauth:bob"]}})
    kinto.put(f"{MESSAGES}/first", {"data": {"text": "hello"}})
    yield "lamp"
    kinto.remove(RECORDS)
    kinto.remove(f"{BUCKET}/groups/lamp")
    kinto.remove(MESSAGES)


def perform(port: int, operation: str, thing: str, token: Token) -> Response:
    item, group = f"{RECORDS}/{thing}", f"{BUCKET}/groups/{thing}"
    document: Any
    method, target, document = {
        "create": ("POST", RECORDS, {"data": {"id": "desk"}}),
        "read": ("GET", item, None),
        "list": ("GET", RECORDS, None),
        "update": ("PATCH", item, {"data": {"colour": "blue"}}),
        "delete": ("DELETE", item, None),
        "share": ("PUT", group, {"data": {"members": ["basicauth:bob", "basicauth:zoe"]}}),
        "unshare": ("DELETE", group, None),
        "publish": ("POST", MESSAGES, {"data": {"id": "second", "text": "news"}}),
        "subscribe": ("GET", MESSAGES, None),
    }[operation]
    return call(port, method, target, token, document)


def assert_done(operation: str, response: Response, kinto: Kinto) -> None:
    """Check that the operation's effect is in Kinto, or that Kinto's answer is in the response."""
    match operation:
        case "create":
            assert kinto.get(f"{RECORDS}/desk") is not None
        case "read":
            assert response.json()["data"]["colour"] == "red"
        case "list":
            assert [record["id"] for record in response.json()["data"]] == ["lamp"]
        case "update":
            assert kinto.get(f"{RECORDS}/lamp")["colour"] == "blue"
        case "delete":
            assert kinto.get(f"{RECORDS}/lamp") is None
        case "share":
            assert kinto.get(f"{BUCKET}/groups/lamp")["members"] == ["basicauth:bob", "basicauth:zoe"]
        case "unshare":
            assert kinto.get(f"{BUCKET}/groups/lamp") is None
        case "publish":
            assert {message["text"] for message in kinto.get(MESSAGES)} == {"hello", "news"}
        case "subscribe":
            assert [message["text"] for message in response.json()["data"]] == ["hello"]
        case _:
            raise AssertionError(f"no check for {operation}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_operations_own_scope_allows_it(
    operation: str, node: Patgate, kinto: Kinto, tokens: dict[str, Token], thing: str
) -> None:
    response = perform(node.port, operation, thing, tokens[operation])
    assert response.status in (200, 201), response.body
    assert_done(operation, response, kinto)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_other_scope_together_does_not(
    operation: str, node: Patgate, kinto: Kinto, tokens: dict[str, Token], thing: str
) -> None:
    before = kinto.state()
    response = perform(node.port, operation, thing, tokens["all but " + operation])
    assert response.status == 403
    challenge = response.get("WWW-Authenticate") or ""
    assert 'error="insufficient_scope"' in challenge
    assert OPERATIONS[operation].partition(":")[2] in challenge
    assert response.get("Content-Type") == "application/problem+json"
    assert kinto.state() == before


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in ("read", "list")])
def test_a_viewers_unscoped_token_may_only_read_and_list(
    operation: str, node: Patgate, kinto: Kinto, thing: str, viewer: Token
) -> None:
    before = kinto.state()
    assert perform(node.port, operation, thing, viewer).status == 403
    assert kinto.state() == before


@pytest.fixture(scope="module")
def viewer(node: Patgate) -> Token:
    return node.token("vic@example.org")


def test_a_scope_on_one_id_reaches_that_id_only(node: Patgate, kinto: Kinto, thing: str) -> None:
    kinto.put(f"{RECORDS}/desk", {"data": {"colour": "oak"}})
    token = node.token("eve@example.org", name="lamp only", scopes=["things/lamp:update", "things/lamp:read"])
    assert call(node.port, "PATCH", f"{RECORDS}/lamp", token, {"data": {"colour": "green"}}).status == 200
    assert call(node.port, "PATCH", f"{RECORDS}/desk", token, {"data": {"colour": "green"}}).status == 403
    assert call(node.port, "GET", RECORDS, token).status == 403
    assert kinto.get(f"{RECORDS}/lamp")["colour"] == "green"
    assert kinto.get(f"{RECORDS}/desk")["colour"] == "oak"


def test_the_owners_lower_role_refuses_the_next_request(node: Patgate, kinto: Kinto, thing: str) -> None:
    node.cli("user", "add", "max@example.org", "--role", "editor")
    token = token_of(node.cli("token", "create", "--user", "max@example.org", "--name", "laptop"))
    assert perform(node.port, "update", thing, token).status == 200
    node.cli("user", "set-role", "max@example.org", "viewer")
    kinto.put(f"{RECORDS}/lamp", {"data": {"colour": "red"}})
    assert perform(node.port, "update", thing, token).status == 403
    assert kinto.get(f"{RECORDS}/lamp")["colour"] == "red"
    assert perform(node.port, "read", thing, token).status == 200
