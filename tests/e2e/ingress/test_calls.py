"""The call of an ingress to patgate: it has no body, and whatever happens to its headers, nothing more is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.e2e.ingress.grpc_relay import GrpcRelay
from tests.e2e.ingress.matrix import Row
from tests.e2e.ingress.relay import Line, Relay, unchanged
from tests.support.gateway import Patgate, Token
from tests.support.ingress import ENVOY_GRPC, INGRESSES, Ingress
from tests.support.plugin import EDITOR
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder

_FORWARDED = (b"x-forwarded-method", b"x-forwarded-uri", b"x-forwarded-host", b"authorization")
ESSENTIAL = {
    "nginx": (b"x-original-method", b"x-original-uri", b"authorization", b"host"),
    "caddy": _FORWARDED,
    "traefik": _FORWARDED,
    "haproxy": _FORWARDED,
    "envoy": (b"authorization", b"host"),
    ENVOY_GRPC: (b"authorization", b"(method)", b"(path)", b"(host)"),
}
"""The headers of a call without which no request with a token is allowed."""

CHANGES: Mapping[str, Callable[[Line], list[Line]]] = {
    "deleted": lambda line: [],
    "emptied": lambda line: [(line[0], b"")],
    "corrupted": lambda line: [(line[0], line[1] + b"\x01")],
    # A field in parentheses is no line: it occurs once, and is doubled.
    "repeated": lambda line: [(line[0], line[1] * 2)] if line[0].startswith(b"(") else [line, line],
}


@pytest.fixture(scope="module")
def relays(asked: Patgate) -> Iterator[tuple[Relay, GrpcRelay]]:
    with Relay(asked.forward_auth_port) as server, GrpcRelay(asked.ext_authz_port) as of_grpc:
        yield server, of_grpc


@pytest.fixture(scope="module", params=INGRESSES)
def through_relay(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    relays: tuple[Relay, GrpcRelay],
    application: Recorder,
) -> Iterator[tuple[Ingress, Relay | GrpcRelay]]:
    """Each ingress, with a relay in patgate's place."""
    relay = relays[request.param == ENVOY_GRPC]
    relay.change = unchanged
    directory = tmp_path_factory.mktemp(request.param)
    ports = {"application": application.port, "forward_auth": relay.port}
    with INGRESSES[request.param](directory, **ports) as running:
        yield running, relay


@pytest.mark.row(Row.UPLOADS)
def test_the_call_has_no_body(
    through_relay: tuple[Ingress, Relay | GrpcRelay], behind: Recorder, editor: Token
) -> None:
    ingress, relay = through_relay
    relay.has_body.clear()
    with Connection(ingress.port) as connection:
        assert connection.request("PUT", "/v1/things/1", headers=editor.bearer, body=b"x" * 10_000).status == 200
    assert len(behind.last().body) >= 10_000
    assert relay.has_body == [False]


@pytest.mark.row(Row.CORRUPTED)
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_to_one_header_of_a_call_allows_more(
    change: str, through_relay: tuple[Ingress, Relay | GrpcRelay], behind: Recorder, editor: Token, viewer: Token
) -> None:
    """A good request stays as it is or is refused; a viewer's update is always refused."""
    ingress, relay = through_relay
    relay.change = unchanged
    relay.calls.clear()
    with Connection(ingress.port) as connection:
        assert connection.request("GET", "/v1/things/1", headers=editor.bearer).status == 200
        assert connection.request("PUT", "/v1/things/1", headers=viewer.bearer, body=b"{}").status == 403
    behind.clear()
    names = list(dict.fromkeys(name.lower() for call in relay.calls for name, _ in call))
    essential = ESSENTIAL[ingress.name]
    assert {*essential} <= {*names}
    try:
        for name in names:

            def changed(line: Line, name: bytes = name) -> list[Line]:
                return CHANGES[change](line) if line[0].lower() == name else [line]

            relay.change = changed
            with Connection(ingress.port) as connection:
                status = connection.request("GET", "/v1/things/1", headers=editor.bearer).status
            if status == 200:
                assert name not in essential, name
                assert behind.last().only("X-Auth-Email") == EDITOR
                assert behind.last().only("X-Auth-Role") == "editor"
            else:
                assert 400 <= status < 600, name
            with Connection(ingress.port) as connection:
                assert connection.request("PUT", "/v1/things/1", headers=viewer.bearer, body=b"{}").status >= 400, name
    finally:
        relay.change = unchanged
    assert all(request.request_line.startswith(b"GET ") for request in behind.requests)
