"""Server-sent event streams through a gateway, with real clients and a real server.

Requirements E7 (publish is a POST and subscribe a stream, on one path), E1 (on one id or all), D8 (either header), F1
and F2 (the stream of an ended grant is closed at once). httpx-sse reads a stream to its end; requests-sse reconnects
by itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.pool import Pool
from tests.support.process import wait_until
from tests.support.remote import Raised, Remote, running, seconds_until
from tests.support.tap import Tap

USER = "amy@example.org"
LIBRARIES = ["httpx", "requests"]
AT_ONCE = 1.0
"""Seconds (requirement F2)."""
CONFIG = {
    "workers": 1,
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


server = running("event_server")
program = running("http_client")


@pytest.fixture(scope="module")
def node(gateways: Pool, server: Remote, program: Remote) -> Iterator[Patgate]:
    with Tap(server.ask("serve"), "event streams") as tap:
        config = CONFIG | {"upstreams": {"app": {"servers": [tap.url]}}}
        with gateways.lend(config) as gateway:
            gateway.add_user(USER, "editor")
            yield gateway
            # Otherwise the gateway would wait for streams that are still open.
            program.end()


@pytest.fixture
def clients(node: Patgate, program: Remote) -> Iterator[Remote]:
    yield program
    program.ask("abandon")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A unique name for the client, token and channel of one test."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


def messages(node: Patgate, channel: str, query: str = "") -> str:
    return f"{node.base_url}/v1/channels/{channel}/messages{query}"


def publish(clients: Remote, node: Patgate, channel: str, token: Token, *lines: str) -> Any:
    url = messages(node, channel)
    content = "\n".join(lines)
    return clients.ask("request", library="httpx", method="POST", url=url, headers=token.bearer, content=content)


def follow(
    clients: Remote, node: Patgate, name: str, token: Token, library: str, channel: str, query: str = ""
) -> None:
    clients.ask("follow", client=name, library=library, url=messages(node, channel, query), headers=token.bearer)


def came(clients: Remote, name: str, count: int) -> list[tuple[str, str]]:
    """The ids and data of the events that a client received, once there are at least ``count``."""
    wait_until(lambda: len(clients.told("event", client=name)) >= count, f"{count} events", process=clients.process)
    return [(event["id"], event["data"]) for event in clients.told("event", client=name)]


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_events_come_as_they_are_published(
    library: str, header: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """E7, D8: each arrives at once with its id and kind; the server gets the subscriber's identity, no credential."""
    token = node.token(USER, name=name)
    headers = token.bearer if header == "Authorization" else {header: token.value}
    clients.ask("follow", client=name, library=library, url=messages(node, name), headers=headers)
    for number in range(1, 4):
        assert publish(clients, node, name, token, f"message {number}")["status"] == 201
        assert came(clients, name, number)[-1] == (str(number), f"message {number}")
    assert {event["kind"] for event in clients.told("event", client=name)} == {"news"}
    opened = server.hears("opened", token=name)
    assert opened["headers"]["x-auth-email"] == USER
    assert token.value not in str(opened)


def test_a_long_stream_comes_whole_and_in_order(node: Patgate, clients: Remote, name: str) -> None:
    """Requirement E7."""
    token = node.token(USER, name=name)
    follow(clients, node, name, token, "httpx", name)
    lines = [f"message {number} {'x' * (number % 300)}" for number in range(1, 5001)]
    for first in range(0, len(lines), 1000):
        publish(clients, node, name, token, *lines[first : first + 1000])
    assert came(clients, name, len(lines)) == [(str(at), line) for at, line in enumerate(lines, 1)]


def test_who_reconnects_goes_on_where_the_stream_broke_off(
    node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """E7: ``Last-Event-ID`` reaches the server; no event is lost or repeated."""
    token = node.token(USER, name=name)
    follow(clients, node, name, token, "requests", name, "?most=10")
    lines = [f"message {number}" for number in range(1, 36)]
    publish(clients, node, name, token, *lines)
    assert came(clients, name, 35) == [(str(at), line) for at, line in enumerate(lines, 1)]
    assert [opened["last"] for opened in server.told("opened", token=name)] == [None, "10", "20", "30"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_publish_and_subscribe_are_two_operations_on_one_id_or_all(
    library: str, node: Patgate, server: Remote, clients: Remote, name: str
) -> None:
    """E1, E7: a scope permits only its operation, only on its channel; the challenge names the missing scope."""

    def may(*scopes: str) -> tuple[int, int, int]:
        """The statuses of publishing to the channel, of subscribing to it, and of subscribing to another one."""
        token = node.token(USER, name=f"{name} {' '.join(scopes)}", scopes=scopes)
        published = publish(clients, node, name, token, "news")
        statuses = [int(published["status"])]
        for channel in (name, "another"):
            try:
                follow(clients, node, token.prefix + channel, token, library, channel)
            except Raised as raised:
                assert raised.status is not None
                assert 'error="insufficient_scope", scope="channels:subscribe"' in raised.headers["www-authenticate"]
                statuses.append(raised.status)
            else:
                statuses.append(200)
        if published["status"] == 403:
            challenge = published["headers"]["www-authenticate"]
            assert 'error="insufficient_scope", scope="channels:publish"' in challenge
        return statuses[0], statuses[1], statuses[2]

    assert may("channels:publish") == (201, 403, 403)
    assert may("channels:subscribe") == (403, 200, 200)
    assert may(f"channels/{name}:subscribe") == (403, 200, 403)
    assert may(f"channels/{name}:publish", "channels/another:subscribe") == (201, 403, 200)
    assert may("channels/another:*") == (403, 403, 200)


@pytest.mark.alone
@pytest.mark.parametrize("how", ["revoked", "suspended", "downgraded", "narrowed"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_dead_grants_stream_is_cut_at_once(
    library: str,
    how: str,
    node: Patgate,
    server: Remote,
    clients: Remote,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """E3, F1, F2: both ends are disconnected within a second, no later event passes, and reconnecting is refused."""
    owner, other = node.add_user(f"{crc32(name.encode()):x}@example.org", "editor"), f"{name}-other"
    token = node.token(owner, name=name, scopes=["channels:subscribe", "channels:publish"])
    publisher = node.token(USER, name=other)
    follow(clients, node, other, publisher, library, name)
    follow(clients, node, name, token, library, name)
    publish(clients, node, name, publisher, "before")
    assert came(clients, name, 1) == [("1", "before")]
    with node.control_socket() as control:
        control.take_away(how, token, owner, role="reporter", scopes=["channels:subscribe"])
    answered = time.monotonic()
    noticed = clients.hears("ended" if library == "httpx" else "dropped", client=name)
    for each in (noticed, server.hears("closed", token=name)):
        record_property("seconds until the cut was noticed", seconds_until(each, answered))
        assert seconds_until(each, answered) < AT_ONCE
    publish(clients, node, name, publisher, "after")
    status = 403 if how in ("downgraded", "narrowed") else 401
    if library == "requests":
        assert clients.hears("ended", client=name)["error"]["status"] == status
    with pytest.raises(Raised) as raised:
        follow(clients, node, f"{name}-again", token, library, name)
    assert raised.value.status == status
    assert came(clients, other, 2) == [("1", "before"), ("2", "after")]
    assert came(clients, name, 1) == [("1", "before")]
    assert not clients.told("ended", client=other)
