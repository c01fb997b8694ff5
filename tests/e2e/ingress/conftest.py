"""Fixtures: each ingress with its shipped file, between a client and an application, with a forward-auth gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.ingress import INGRESSES, Ingress
from tests.support.plugin import EDITOR, ROLES, ROUTES, VIEWER
from tests.support.pool import Pool
from tests.support.recorder import Recorder, answer_ok

ROUTES_WITH_HOSTS = [
    {"path": "/hosts/**", "host": "open.example", "upstream": "app", "access": "public"},
    {"path": "/hosts/**", "host": "closed.example", "upstream": "app", "access": "denied"},
]


@pytest.fixture(scope="session")
def asked(gateways: Pool) -> Iterator[Patgate]:
    """The gateway that answers the forward-auth calls of every ingress; it forwards nothing itself."""
    config = {
        "workers": 1,
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}},
        "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
        "roles": ROLES,
        "routes": [*ROUTES_WITH_HOSTS, *ROUTES],
    }
    with gateways.lend(config) as node:
        node.add_user(EDITOR, "editor")
        node.add_user(VIEWER, "viewer")
        yield node


@pytest.fixture(scope="session")
def application() -> Iterator[Recorder]:
    """The backend behind the ingress; the sentinel does not check its requests, because the ingress writes them."""
    with Recorder(watched=False) as server:
        yield server


@pytest.fixture
def behind(application: Recorder) -> Iterator[Recorder]:
    """The same backend, cleared for each test."""
    application.script = answer_ok
    application.clear()
    yield application
    application.script = answer_ok


@pytest.fixture(scope="session")
def started(
    tmp_path_factory: pytest.TempPathFactory, asked: Patgate, application: Recorder
) -> Iterator[Callable[[str], Ingress]]:
    """Starts an ingress by its name, once for all files that a worker runs."""
    with ExitStack() as stack:
        running: dict[str, Ingress] = {}

        def start(name: str) -> Ingress:
            if name not in running:
                ports = {"application": application.port, "forward_auth": asked.forward_auth_port}
                running[name] = stack.enter_context(INGRESSES[name](tmp_path_factory.mktemp(name), **ports))
            return running[name]

        yield start


@pytest.fixture(scope="module", params=INGRESSES)
def ingress(request: pytest.FixtureRequest, started: Callable[[str], Ingress]) -> Ingress:
    return started(request.param)


@pytest.fixture(scope="module")
def editor(asked: Patgate) -> Token:
    return asked.token(EDITOR, name="ingress")


@pytest.fixture(scope="module")
def viewer(asked: Patgate) -> Token:
    return asked.token(VIEWER, name="ingress")
