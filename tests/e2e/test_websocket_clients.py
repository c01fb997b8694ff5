"""The ``websockets`` package's clients, on asyncio and on threads, and its server, with a gateway between them.

Requirements E7 (subscribe is a WebSocket), D8 (either header), F1 and F2 (a WebSocket ends at once when its grant is
invalid).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import pytest

from tests.support.gateway import Patgate
from tests.support.pool import Pool
from tests.support.remote import Raised, Remote, running, seconds_until
from tests.support.tap import Tap
from tests.support.tokens import forged, unknown_prefix

USER = "amy@example.org"
WAYS = ["asyncio", "threads"]
DEFLATE = "permessage-deflate"
MIB = 1 << 20
AT_ONCE = 1.0
"""Seconds (requirement F2)."""
CONFIG = {
    "roles": {"editor": ["channels:publish", "channels:subscribe"], "reporter": ["channels:publish"]},
    "routes": [
        {
            "path": "/v1/channels/{id}/messages",
            "upstream": "app",
            "entity": "channels",
            "operations": {"POST": "publish", "GET": "subscribe"},
        }
    ],
}


server = running("websocket_server")
program = running("websocket_client")


@pytest.fixture(scope="module")
def node(gateways: Pool, server: Remote, program: Remote) -> Iterator[Patgate]:
    with Tap(server.ask("serve", subprotocols=["v2.news", "v1.news"]), "WebSockets") as tap:
        config = CONFIG | {"upstreams": {"app": {"servers": [tap.url]}}}
        with gateways.lend(config) as gateway:
            gateway.add_user(USER, "editor")
            yield gateway


@pytest.fixture
def clients(node: Patgate, program: Remote) -> Iterator[Remote]:
    """The clients' program; its clients are closed after each test."""
    yield program
    program.ask("abandon")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other client and no other token has."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


def connect(clients: Remote, node: Patgate, name: str, headers: dict[str, str], way: str, **options: Any) -> Any:
    channel = options.pop("channel", "42")
    url = f"ws://127.0.0.1:{node.port}/v1/channels/{channel}/messages"
    return clients.ask("open", client=name, way=way, url=url, headers=headers, **options)


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
@pytest.mark.parametrize("way", WAYS)
def test_a_client_subscribes_with_the_token_in_either_header(
    way: str, header: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """D8, E7: the server knows the user, and sees no credential."""
    token = node.token(USER, name=name)
    connect(clients, node, name, token.bearer if header == "Authorization" else {header: token.value}, way)
    clients.ask("say", client=name, text="good morning, José")
    clients.hears("got", client=name, text="good morning, José")
    opened = server.hears("opened", token=name)
    assert opened["path"] == "/v1/channels/42/messages"
    assert opened["headers"]["x-auth-email"] == USER
    assert not {"authorization", "x-api-key"} & opened["headers"].keys()
    assert token.value not in str(opened)


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("way", WAYS)
def test_compression_and_subprotocol_are_agreed_upon_end_to_end(
    way: str, compression: str | None, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """E7: messages of a mebibyte pass in both directions, whole and in fragments, compressible or not."""
    bearer = node.token(USER, name=name).bearer
    agreed = connect(
        clients, node, name, bearer, way, compression=compression, subprotocols=["v0.news", "v1.news", "v2.news"]
    )
    extensions = [DEFLATE] if compression else []
    assert agreed == {"subprotocol": "v2.news", "extensions": extensions}
    opened = server.hears("opened", token=name)
    assert (opened["subprotocol"], opened["extensions"]) == ("v2.news", extensions)
    for fragments in (1, 7):
        sent = clients.ask("send", client=name, size=MIB, fragments=fragments)
        clients.hears("got", client=name, size=MIB, digest=sent)
    clients.ask("say", client=name, text="news " * 200_000)
    clients.hears("got", client=name, text="news " * 200_000)


@pytest.mark.parametrize("way", WAYS)
def test_pings_are_answered_by_the_other_end(way: str, node: Patgate, clients: Remote, name: str) -> None:
    """E7: in both directions."""
    connect(clients, node, name, node.token(USER, name=name).bearer, way)
    clients.ask("ping", client=name)
    clients.ask("say", client=name, text="ping")
    clients.hears("got", client=name, text="pong came")


@pytest.mark.parametrize("way", WAYS)
def test_either_end_closes_with_a_code_and_a_reason_that_the_other_sees(
    way: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """E7: the codes are the application's."""
    bearer = node.token(USER, name=name).bearer
    connect(clients, node, name, bearer, way)
    clients.ask("close", client=name, code=3000, reason="had enough")
    server.hears("closed", token=name, code=3000, reason="had enough")
    connect(clients, node, f"{name}-again", bearer, way)
    clients.ask("say", client=f"{name}-again", text="close 4001 no more today")
    clients.hears("closed", client=f"{name}-again", code=4001, reason="no more today")


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_handshake_shows_the_client_status_and_challenge(
    way: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """E7, E1: the handshake never reaches the server."""
    scoped = {
        scopes: node.token(USER, name=name, scopes=[scopes]).bearer
        for scopes in ("channels:publish", "channels/43:subscribe", "channels/42:subscribe")
    }
    unknown = {"Authorization": f"Bearer {forged(unknown_prefix())}"}
    needed = 'error="insufficient_scope", scope="channels:subscribe"'
    for headers, status, challenge in (
        ({}, 401, 'Bearer realm="acme"'),
        (unknown, 401, 'error="invalid_token"'),
        (scoped["channels:publish"], 403, needed),
        (scoped["channels/43:subscribe"], 403, needed),
    ):
        with pytest.raises(Raised) as raised:
            connect(clients, node, name, headers, way)
        assert (raised.value.kind, raised.value.status) == ("InvalidStatus", status)
        assert challenge in raised.value.headers["www-authenticate"]
        assert raised.value.headers["content-type"] == "application/problem+json"
    assert not server.told("opened", token=name)
    connect(clients, node, name, scoped["channels/42:subscribe"], way)
    server.hears("opened", token=name)


@pytest.mark.alone
@pytest.mark.parametrize("how", ["revoked", "rotated", "suspended", "downgraded", "narrowed", "restricted"])
@pytest.mark.parametrize("way", WAYS)
def test_a_dead_grants_connection_is_cut_at_once(
    way: str,
    how: str,
    node: Patgate,
    server: Remote,
    clients: Remote,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """E3, F1, F2: both ends see the cut within a second of the response, while messages pass; others are unaffected."""
    owner, other = node.add_user(f"{crc32(name.encode()):x}@example.org", "editor"), f"{name}-other"
    token = node.token(owner, name=name, scopes=["channels:subscribe", "channels:publish"])
    connect(clients, node, other, node.token(USER, name=other).bearer, way)
    connect(clients, node, name, token.bearer, way)
    clients.ask("say", client=name, text="still here")
    clients.hears("got", client=name, text="still here")
    with node.control_socket() as control:
        control.take_away(how, token, owner, role="reporter", scopes=["channels:subscribe"])
    answered = time.monotonic()
    for noticed in (clients.hears("closed", client=name), server.hears("closed", token=name)):
        record_property("seconds until the cut was noticed", seconds_until(noticed, answered))
        assert seconds_until(noticed, answered) < AT_ONCE
    assert clients.told("closed", client=name)[0]["kind"] == "ConnectionClosedError"
    with pytest.raises(Raised) as raised:
        connect(clients, node, name, token.bearer, way)
    assert raised.value.status == (403 if how in ("downgraded", "narrowed", "restricted") else 401)
    clients.ask("say", client=other, text="undisturbed")
    clients.hears("got", client=other, text="undisturbed")
