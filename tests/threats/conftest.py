"""One gateway in front of real servers: the tests of threats.md that ask what a backend believes of a request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.gateway import Patgate
from tests.support.plugin import EDITOR, ROLES
from tests.support.realservers import COMMANDS, RealServer, real_servers


def routes_of(server: RealServer) -> list[dict[str, Any]]:
    """A route of every kind that reaches a server, and one that never does."""
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
    with real_servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory, servers: dict[str, RealServer]) -> Iterator[Patgate]:
    """The gateway before all of them; a request's `Host` chooses the server."""
    config = {
        "workers": 1,
        "upstreams": {name: {"servers": [server.url]} for name, server in servers.items()},
        "roles": ROLES,
        "routes": [route for server in servers.values() for route in routes_of(server)],
    }
    with Patgate(tmp_path_factory.mktemp("front"), config) as node:
        node.add_user(EDITOR, "editor")
        yield node


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, servers: dict[str, RealServer]) -> RealServer:
    return servers[request.param]
