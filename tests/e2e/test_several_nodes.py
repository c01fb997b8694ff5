"""Two gateways on one PostgreSQL: what is revoked on one is refused by the other when the call has answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.postgres import Postgres
from tests.support.process import children, wait_until
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

TARGET = "/v1/things/42"
LEASE_SECONDS = 2.0


def _config(backend: Recorder, url: str) -> dict[str, Any]:
    return {
        "store": url,
        "secret_key": "e2e" * 20,
        "lease": f"{LEASE_SECONDS}s",
        "roles": {"editor": ["things:*"], "viewer": ["things:list"]},
        "upstreams": {"app": {"servers": [backend.url]}},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of these tests' own: one of them stops it."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def pair(server: Postgres, backend: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Patgate]]:
    url = server.create_database()
    with ExitStack() as stack:
        nodes = []
        for name in ("a", "b"):
            directory = tmp_path_factory.mktemp("node") / name
            nodes.append(stack.enter_context(Patgate(directory, _config(backend, url))))
        yield nodes


@pytest.fixture
def token(pair: list[Patgate], request: pytest.FixtureRequest) -> Token:
    email = f"{request.node.name.replace('_', '-')[:40]}@example.org"
    return pair[0].token(pair[0].add_user(email, "editor"))


def _status(connection: Connection, token: Token) -> int:
    return connection.request("GET", TARGET, headers=token.bearer).status


@contextmanager
def _connected(node: Patgate) -> Iterator[list[Connection]]:
    """One kept-alive connection to each worker."""
    found = list(node.connection_to_each_worker().values())
    try:
        yield found
    finally:
        for connection in found:
            connection.close()


@contextmanager
def _frozen(node: Patgate) -> Iterator[None]:
    pids = [node.process.pid, *children(node.process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def test_a_revocation_on_one_node_is_in_force_on_the_other_when_it_has_answered(pair: list[Patgate]) -> None:
    email = pair[0].add_user("many@example.org", "editor")
    with _connected(pair[0]) as here, _connected(pair[1]) as there:
        for turn in range(8):
            one, other = pair[turn % 2], pair[1 - turn % 2]
            token = one.token(email, name=f"t{turn}")
            assert {_status(connection, token) for connection in (*here, *there)} == {200}
            with other.control_socket() as control:
                control.revoke(token)
            assert {_status(connection, token) for connection in (*here, *there)} == {401}


def test_a_frozen_node_refuses_what_was_revoked_meanwhile(pair: list[Patgate], token: Token) -> None:
    a, b = pair
    with _connected(b) as there:
        assert {_status(connection, token) for connection in there} == {200}
        with _frozen(b), a.control_socket() as control:
            control.revoke(token)
        # It wakes with its lease over: 503 until it has joined again, then 401, and 200 never.
        statuses = {_status(connection, token) for connection in there}
        assert statuses <= {401, 503}
        b.wait_ready()
        assert {_status(connection, token) for connection in there} == {401}


def test_a_killed_node_delays_one_change_and_comes_back(pair: list[Patgate], token: Token) -> None:
    a, b = pair
    b.kill_everything()
    with a.control_socket() as control:
        control.revoke(token)
        begun = time.monotonic()
        control.create_token("many@example.org", name="after")
    assert time.monotonic() - begun < 60
    b.start()
    with _connected(b) as there:
        assert {_status(connection, token) for connection in there} == {401}


def test_without_the_store_a_node_serves_from_its_cache_until_its_lease_ends(
    pair: list[Patgate], server: Postgres, token: Token
) -> None:
    a, b = pair
    with _connected(a) as here, _connected(b) as there, a.control_socket() as control:
        both = [*here, *there]
        assert {_status(connection, token) for connection in both} == {200}
        for node in pair:
            node.expects("events and usage of requests cannot be written yet")
        server.stop("immediate")
        answer = a.control("GET", "/readyz")
        assert answer.status == 503

        def ended() -> bool:
            return {_status(connection, token) for connection in both} == {503}

        wait_until(ended, "the end of both leases")
        refused = both[0].request("GET", TARGET, headers=token.bearer)
        assert refused.all("retry-after"), refused.headers
        with pytest.raises(AssertionError, match="503"):
            control.set_role("many@example.org", "viewer")
        server.start()
        for node in pair:
            node.wait_ready()
        assert {_status(connection, token) for connection in both} == {200}
        control.revoke(token)
        assert {_status(connection, token) for connection in both} == {401}


def test_a_command_beside_the_nodes_waits_for_them(
    pair: list[Patgate], server: Postgres, backend: Recorder, token: Token, tmp_path: Path
) -> None:
    """An operator's command on a third host, where no gateway runs."""
    third = Patgate(tmp_path / "third", {**_config(backend, pair[0].config["store"])})
    with _connected(pair[0]) as here, _connected(pair[1]) as there:
        assert {_status(connection, token) for connection in (*here, *there)} == {200}
        third.cli("token", "revoke", token.id)
        assert {_status(connection, token) for connection in (*here, *there)} == {401}
