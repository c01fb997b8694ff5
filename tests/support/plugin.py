"""Fixtures over the machinery; the logs of every running process under a test that failed; the wire sentinel's word."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.support import sentinel
from tests.support.gateway import Patgate
from tests.support.process import RUNNING
from tests.support.recorder import Recorder, answer_ok

ADMIN = "ada@example.org"
EDITOR = "eve@example.org"
VIEWER = "vic@example.org"

ROLES = {
    "admin": ["*:*"],
    "editor": ["things:*", "channels:read", "channels:publish", "channels:subscribe"],
    "viewer": ["things:read", "things:list"],
}

ROUTES = [
    {"path": "/healthz", "upstream": "app", "access": "public"},
    {"path": "/public/**", "upstream": "app", "access": "public"},
    {"path": "/ui/**", "upstream": "app", "access": "passthrough"},
    {"path": "/billing/**", "upstream": "app", "access": "denied"},
    {
        "path": "/v1/channels/{id}/messages",
        "upstream": "app",
        "entity": "channels",
        "operations": {"POST": "publish", "GET": "subscribe"},
    },
    {"path": "/lenient/{entity}/{id}", "upstream": "app", "allow": ["encoded_slash", "semicolon", "empty_segment"]},
    {"path": "/v1/{entity}", "upstream": "app"},
    {"path": "/v1/{entity}/{id}", "upstream": "app"},
]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if sentinel.FOUND and not item.session.shouldfail:
        # Nothing that follows can be believed of a gateway that writes what it must not.
        item.session.shouldfail = "the gateway broke the wire protocol; see the wire sentinel's report"
        report.outcome = "failed"
        report.longrepr = "\n".join(sentinel.FOUND)
    if report.failed:
        for process in RUNNING:
            report.sections.append((f"log of {process.name}", process.tail()))
    return report


@pytest.fixture(scope="session")
def backend() -> Iterator[Recorder]:
    """One recording backend for the session; `recorder` is the same, emptied for each test."""
    with Recorder() as server:
        yield server


@pytest.fixture
def recorder(backend: Recorder) -> Iterator[Recorder]:
    backend.script = answer_ok
    backend.clear()
    yield backend
    backend.script = answer_ok


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, backend: Recorder) -> Iterator[Patgate]:
    """A node with two workers and every kind of route in front of the recorder; an admin, an editor and a viewer."""
    config = {
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}},
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": ROLES,
        "routes": ROUTES,
    }
    with Patgate(tmp_path_factory.mktemp("gateway"), config) as node:
        for email, role in ((ADMIN, "admin"), (EDITOR, "editor"), (VIEWER, "viewer")):
            node.add_user(email, role)
        yield node
