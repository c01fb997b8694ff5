"""Every ingress that has a file in config/ingress, between a client and an application; it queries a gateway."""

from __future__ import annotations

from collections.abc import Iterator

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
    """The gateway that every ingress queries; it forwards nothing itself."""
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


@pytest.fixture(scope="module")
def application() -> Iterator[Recorder]:
    """The backend behind the ingress: it receives the ingress's bytes, which the sentinel does not check."""
    with Recorder(watched=False) as server:
        yield server


@pytest.fixture
def behind(application: Recorder) -> Iterator[Recorder]:
    """The same backend, cleared for each test."""
    application.script = answer_ok
    application.clear()
    yield application
    application.script = answer_ok


@pytest.fixture(scope="module", params=INGRESSES)
def ingress(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, asked: Patgate, application: Recorder
) -> Iterator[Ingress]:
    directory = tmp_path_factory.mktemp(request.param)
    start = INGRESSES[request.param]
    with start(directory, application=application.port, forward_auth=asked.forward_auth_port) as running:
        yield running


@pytest.fixture(scope="module")
def editor(asked: Patgate) -> Token:
    return asked.token(EDITOR, name="ingress")


@pytest.fixture(scope="module")
def viewer(asked: Patgate) -> Token:
    return asked.token(VIEWER, name="ingress")
