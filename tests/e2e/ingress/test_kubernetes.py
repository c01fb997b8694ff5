"""Traefik with its objects for Kubernetes protects the application as with its files of config/ingress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.e2e.ingress.test_upgrades import UPGRADES, accepts_any, upgrade
from tests.support.gateway import Patgate, Token
from tests.support.ingress import KUBERNETES_HOST, Ingress, traefik_in_kubernetes
from tests.support.rawhttp import Connection, ConnectionEnded
from tests.support.recorder import Recorder


@pytest.fixture(scope="module")
def in_kubernetes(tmp_path_factory: pytest.TempPathFactory, asked: Patgate, application: Recorder) -> Iterator[Ingress]:
    directory = tmp_path_factory.mktemp("kubernetes")
    ports = {"application": application.port, "forward_auth": asked.forward_auth_port}
    with traefik_in_kubernetes(directory, **ports) as running:
        yield running


@pytest.mark.parametrize("form", UPGRADES)
def test_no_upgrade_but_to_a_websocket_arrives_behind_traefik_in_kubernetes(
    form: str, in_kubernetes: Ingress, behind: Recorder
) -> None:
    behind.script = accepts_any
    upgrade(in_kubernetes, form, KUBERNETES_HOST)
    for request in behind.requests:
        assert request.all("Upgrade") in ([], [b"websocket"])


def test_a_websocket_and_an_identity_pass_traefik_in_kubernetes(
    in_kubernetes: Ingress, behind: Recorder, editor: Token
) -> None:
    behind.script = accepts_any
    lines = f"Host: {KUBERNETES_HOST}\r\nAuthorization: Bearer {editor.value}\r\nX-Auth-Role: admin\r\n"
    opening = "Connection: keep-alive, Upgrade, X-Auth-Role\r\nUpgrade: websocket\r\n"
    with Connection(in_kubernetes.port) as connection, suppress(ConnectionEnded):
        connection.exchange(f"GET /v1/channels/7/messages HTTP/1.1\r\n{lines}{opening}\r\n".encode())
    seen = behind.last()
    assert seen.only("Upgrade") == "websocket"
    assert seen.only("X-Auth-Role") == "editor"
    assert seen.all("Authorization") == []
    behind.clear()
    with Connection(in_kubernetes.port) as connection:
        head = f"GET /v1/channels/7/messages HTTP/1.1\r\nHost: {KUBERNETES_HOST}\r\n{opening}\r\n"
        assert connection.exchange(head.encode()).status == 401
    assert behind.requests == []
