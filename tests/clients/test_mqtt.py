"""F9: amqtt's clients with its broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.pages import EDITOR, Front, Page, environment, front
from tests.support.gateway import Token
from tests.support.pool import Pool
from tests.support.process import Process, accepts, free_port, wait_until

PAGE = Page("mqtt")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("broker")
    port = free_port()
    (directory / "broker.yaml").write_text(PAGE.block("The broker", "yaml").replace(":3000", f":{port}"))
    argv = ["amqtt", "-c", "broker.yaml"]
    with Process(argv, name=f"broker-{port}", directory=directory, environ=environment(directory)) as process:
        wait_until(lambda: accepts(port), "the broker listening", process=process)
        yield process


@pytest.fixture(scope="module")
def gate(gateways: Pool, broker: Process) -> Iterator[Front]:
    with front(gateways, PAGE, broker=int(broker.name.rpartition("-")[2])) as gate:
        yield gate


def test_a_message_that_is_published_is_received(gate: Front, tmp_path: Path) -> None:
    gate.shows("Publish and subscribe", gate.succeeds("Publish and subscribe", tmp_path, gate.editor))


@pytest.mark.alone
def test_a_connection_ends_with_its_token(gate: Front, tmp_path: Path) -> None:
    token = gate.node.token(EDITOR, name="short-lived")
    gate.succeeds("Publish and subscribe", tmp_path, gate.editor)
    with gate.starts("Wait for messages", tmp_path, token) as client:
        wait_until(lambda: "running" in client.output, "the message", process=client)
        with gate.node.control_socket() as control:
            control.revoke(token)
        revoked = time.monotonic()
        wait_until(lambda: cut(gate, token), "the end of the connection", process=client)
        assert time.monotonic() - revoked < 2


def cut(gate: Front, token: Token) -> bool:
    """Whether the log says that a connection with this token has ended because it was revoked."""
    wanted = {"token": token.prefix, "reason": "token_revoked"}
    return any(wanted.items() <= record.items() for record in gate.node.records())


def test_a_viewer_cannot_connect(gate: Front, tmp_path: Path) -> None:
    gate.refuses("Connect as a viewer", tmp_path, gate.viewer)
