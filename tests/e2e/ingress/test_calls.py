"""The call of an ingress to patgate: it has no body, and whatever happens to its headers, nothing more is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.e2e.ingress.matrix import Row
from tests.e2e.ingress.relay import Relay, unchanged
from tests.support.gateway import Patgate, Token
from tests.support.ingress import INGRESSES, Ingress
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
}
"""The headers of a call without which no request with a token is allowed."""

CHANGES: Mapping[str, Callable[[bytes, bytes], bytes]] = {
    "deleted": lambda name, value: b"",
    "emptied": lambda name, value: name + b":\r\n",
    "corrupted": lambda name, value: name + b": " + value + b"\x01\r\n",
    "repeated": lambda name, value: (name + b": " + value + b"\r\n") * 2,
}


@pytest.fixture(scope="module")
def relay(asked: Patgate) -> Iterator[Relay]:
    with Relay(asked.forward_auth_port) as server:
        yield server


@pytest.fixture(scope="module", params=INGRESSES)
def through_relay(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, relay: Relay, application: Recorder
) -> Iterator[Ingress]:
    """Each ingress, with the relay in patgate's place."""
    relay.change = unchanged
    directory = tmp_path_factory.mktemp(request.param)
    ports = {"application": application.port, "forward_auth": relay.port}
    with INGRESSES[request.param](directory, **ports) as running:
        yield running


def names_of(head: bytes) -> list[bytes]:
    return list(dict.fromkeys(line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line))


@pytest.mark.row(Row.UPLOADS)
def test_the_call_has_no_body(through_relay: Ingress, relay: Relay, behind: Recorder, editor: Token) -> None:
    relay.heads.clear()
    with Connection(through_relay.port) as connection:
        assert connection.request("PUT", "/v1/things/1", headers=editor.bearer, body=b"x" * 10_000).status == 200
    assert len(behind.last().body) >= 10_000
    (head,) = relay.heads
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2] if b": " in line)
    assert fields.get(b"content-length", b"0") == b"0"
    assert b"transfer-encoding" not in fields


@pytest.mark.row(Row.CORRUPTED)
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_to_one_header_of_a_call_allows_more(
    change: str, through_relay: Ingress, relay: Relay, behind: Recorder, editor: Token, viewer: Token
) -> None:
    """A good request stays as it is or is refused; a viewer's update is always refused."""
    relay.change = unchanged
    relay.heads.clear()
    with Connection(through_relay.port) as connection:
        assert connection.request("GET", "/v1/things/1", headers=editor.bearer).status == 200
        assert connection.request("PUT", "/v1/things/1", headers=viewer.bearer, body=b"{}").status == 403
    behind.clear()
    names = list(dict.fromkeys(name for head in relay.heads for name in names_of(head)))
    assert {*ESSENTIAL[through_relay.name]} <= {*names}
    try:
        for name in names:

            def changed(head: bytes, name: bytes = name) -> bytes:
                lines = head.split(b"\r\n")[:-2]
                parts = [(line, *line.partition(b":")[::2]) for line in lines[1:]]
                kept = [
                    CHANGES[change](key, value.strip()) if key.lower() == name else line + b"\r\n"
                    for line, key, value in parts
                ]
                return lines[0] + b"\r\n" + b"".join(kept) + b"\r\n"

            relay.change = changed
            with Connection(through_relay.port) as connection:
                status = connection.request("GET", "/v1/things/1", headers=editor.bearer).status
            if status == 200:
                assert name not in ESSENTIAL[through_relay.name], name
                assert behind.last().only("X-Auth-Email") == EDITOR
                assert behind.last().only("X-Auth-Role") == "editor"
            else:
                assert 400 <= status < 600, name
            with Connection(through_relay.port) as connection:
                assert connection.request("PUT", "/v1/things/1", headers=viewer.bearer, body=b"{}").status >= 400, name
    finally:
        relay.change = unchanged
    assert all(request.request_line.startswith(b"GET ") for request in behind.requests)
