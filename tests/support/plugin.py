"""Pytest plugin: shared fixtures, the logs of every running process when a test fails, and checks that end a run.

The workers of one run (pytest-xdist) share only the machine: each has its own gateways, backends, wire sentinel and
secrets, and checks them itself; locks decide which worker may run a test alone.
"""

from __future__ import annotations

import gc
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol

import pytest

from tests.support import errors, leaks, operate, order, rawhttp, sentinel, turns
from tests.support.gateway import Patgate
from tests.support.pool import Pool
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
    {"path": "/loose/**", "upstream": "app", "access": "public", "allow": ["empty_segment"]},
    operate.COUNTED,
    {"path": "/v1/{entity}", "upstream": "app"},
    {"path": "/v1/{entity}/{id}", "upstream": "app"},
]


class Worker(Protocol):
    """The parts that we use of a worker that pytest-xdist, which has no types, is about to start."""

    config: pytest.Config
    workerinput: dict[str, str]


LOCKS = pytest.StashKey[Path]()
TURNS = pytest.StashKey[turns.Turns]()
POOLS: list[Pool] = []
"""The pools of this process, which learn of failed tests."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{turns.MARK}: holds a promise about time; no other test runs meanwhile")
    for number in (signal.SIGHUP, signal.SIGINT):
        # Child processes inherit the default action, although ``nohup make test &`` leaves these signals ignored.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    given = getattr(config, "workerinput", {}).get("locks")
    if given is not None:
        config.stash[TURNS] = turns.Turns(Path(given))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Worker) -> None:
    if LOCKS not in node.config.stash:
        node.config.stash[LOCKS] = Path(mkdtemp(prefix="patgate-turns-"))
    node.workerinput["locks"] = str(node.config.stash[LOCKS])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> order.Files | None:
    return order.Files(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_unconfigure(config: pytest.Config) -> None:
    if LOCKS in config.stash:
        shutil.rmtree(config.stash[LOCKS])


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Collect without the garbage collector, which would repeatedly scan ten thousand tests that stay.

    That is half of the collection time in every worker. Afterwards the tests are excluded from garbage collection, too.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if TURNS in config.stash:
        items.sort(key=lambda item: order.place(item.nodeid, alone=_is_alone(item)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    locks = item.config.stash.get(TURNS, None)
    if locks is None:
        return (yield)
    alone = _is_alone(item)
    locks.take(alone=alone)
    try:
        return (yield)
    finally:
        locks.leave(stays=alone and nextitem is not None and _is_alone(nextitem))


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker(turns.MARK) is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Close the connections that a failed test has left open: the warning about them would fail the next test."""
    before = rawhttp.opened()
    try:
        return (yield)
    except BaseException:
        for connection in rawhttp.opened() - before:
            connection.close()
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    found = [*sentinel.FOUND, *leaks.SENT]
    if found and not item.session.shouldfail:
        # No later result is reliable for a gateway that sends forbidden bytes.
        item.session.shouldfail = "the gateway wrote what it must not; see the report of the test that failed"
        report.outcome = "failed"
        report.longrepr = "\n".join(found)
    if report.failed:
        for pool in POOLS:
            pool.damaged()
        for process in RUNNING:
            report.sections.append((f"log of {process.name}", process.tail()))
    return report


@pytest.fixture(scope="session", autouse=True)
def last_look() -> Iterator[None]:
    """Check the files that this process's gateways left; it is set up first, so that it is torn down last.

    docs/threat-model.md §9: no token's secret is in a log, database or any other file. A finding is an error of the
    last test.
    """
    yield
    assert not leaks.SENT
    assert not sentinel.FOUND
    assert not leaks.files_with_secrets()
    found = errors.unexpected()
    assert not found, "\n".join(("a gateway logged an error that no test expects", *found))


@pytest.fixture(scope="session")
def backend() -> Iterator[Recorder]:
    """One recording backend for the session; ``recorder`` is the same backend, cleared for each test."""
    with Recorder() as server:
        yield server


@pytest.fixture
def recorder(backend: Recorder) -> Iterator[Recorder]:
    backend.script = answer_ok
    backend.clear()
    yield backend
    backend.script = answer_ok
    backend.clear()


@pytest.fixture(scope="session")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """The gateways that files borrow one after the other (``support.pool``)."""
    pool = Pool(lambda: tmp_path_factory.mktemp("shared"))
    POOLS.append(pool)
    yield pool
    pool.end()


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
