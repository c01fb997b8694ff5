"""Fixtures: each ingress with its shipped file, between a client and an application, with a forward-auth gateway."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.ingress import matrix
from tests.support.gateway import Patgate, Token
from tests.support.ingress import INGRESSES, Ingress, asked_port
from tests.support.plugin import EDITOR, ROLES, ROUTES, VIEWER
from tests.support.pool import Pool
from tests.support.recorder import Recorder, answer_ok

WRITES_MATRIX = "PATGATE_INGRESS_MATRIX"
"""The environment variable with which ``make ingress`` asks a run to write the matrix of its results."""

RESULTS: dict[tuple[str, str], bool] = {}
"""For each row and ingress of this run, whether every test has passed so far."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(row): the row of the matrix in docs/ingress.md that a test belongs to")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the reports of a test its row and ingress, also those that another process makes."""
    mark = item.get_closest_marker("row")
    if mark is not None and isinstance(item, pytest.Function):
        (name,) = [value for value in item.callspec.params.values() if value in INGRESSES]
        item.user_properties.append(("row", (str(mark.args[0]), str(name))))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "row":
            assert isinstance(value, (tuple, list))  # a list, from another process
            row, ingress = value
            RESULTS[row, ingress] = RESULTS.get((row, ingress), True) and not report.failed


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get(WRITES_MATRIX) and not hasattr(session.config, "workerinput"):
        matrix.write(RESULTS)


ROUTES_WITH_HOSTS = [
    {"path": "/hosts/**", "host": "open.example", "upstream": "app", "access": "public"},
    {"path": "/hosts/**", "host": "closed.example", "upstream": "app", "access": "denied"},
]


@pytest.fixture(scope="session")
def asked(gateways: Pool) -> Iterator[Patgate]:
    """The gateway that answers the forward-auth calls of every ingress; it forwards nothing itself."""
    config = {
        "workers": 1,
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}, "ext_authz": {"trusted": ["127.0.0.1/32"]}},
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
                ports = {"application": application.port, "forward_auth": asked_port(name, asked)}
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
