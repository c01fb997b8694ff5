"""Shared fixtures: a gateway in front of real servers, and one in front of a scripted backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Patgate
from tests.support.plugin import EDITOR, ROLES, ROUTES
from tests.support.pool import Pool
from tests.support.realservers import COMMANDS, RealServer, of_this_build, real_servers
from tests.support.scripted import ScriptedBackend, echo


def routes_of(server: RealServer) -> list[dict[str, Any]]:
    """A route of every kind to a server, and a denied one."""
    return [
        {"host": server.host, "upstream": server.name} | route
        for route in (
            {"path": "/answer/**", "access": "public"},
            {"path": "/ui/**", "access": "public"},
            {"path": "/login/**", "access": "passthrough"},
            {"path": "/billing/**", "access": "denied"},
            {"path": "/admin/**", "access": "denied"},
            {"path": "/v1/{entity}/{id}"},
        )
    ]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RealServer]]:
    with real_servers(tmp_path_factory.mktemp("servers"), of_this_build(COMMANDS)) as running:
        yield running


@pytest.fixture(scope="session")
def front(gateways: Pool, servers: dict[str, RealServer]) -> Iterator[Patgate]:
    """The gateway in front of all of them; ``Host`` selects the server."""
    config = {
        "workers": 1,
        "upstreams": {name: {"servers": [server.url]} for name, server in servers.items()},
        "roles": ROLES,
        "routes": [route for server in servers.values() for route in routes_of(server)],
    }
    with gateways.lend(config) as node:
        node.add_user(EDITOR, "editor")
        yield node


@pytest.fixture(params=of_this_build(COMMANDS))
def server(request: pytest.FixtureRequest, servers: dict[str, RealServer]) -> RealServer:
    return servers[request.param]


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedBackend]:
    with ScriptedBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def node(gateways: Pool, scripted: ScriptedBackend) -> Iterator[Patgate]:
    """A gateway with one worker, so that all clients share one pool of upstream connections."""
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [scripted.url], "response_timeout": "10s"}},
        "roles": ROLES,
        "routes": ROUTES,
    }
    with gateways.lend(config) as gateway:
        yield gateway


@pytest.fixture
def misbehaving(scripted: ScriptedBackend) -> Iterator[ScriptedBackend]:
    scripted.use(echo)
    yield scripted
    scripted.use(echo)
