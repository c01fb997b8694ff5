"""Threat model §2: a client's claims of path, method, address, transport or identity are dropped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.core.request.claims import CLAIMS, FAMILIES, FROM_TRUSTED, ClaimKind
from tests.support.gateway import Patgate, Token
from tests.support.plugin import EDITOR
from tests.support.pool import Pool
from tests.support.recorder import Recorder

MARK = b"mallory"

# The headers that patgate itself sends to every backend.
OURS = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"))

NAMES = [(kind, name) for kind, names in CLAIMS.items() for name in names]
NAMES += [(kind, beginning + "Anything") for kind, names in FAMILIES.items() for beginning in names]


def aliases(name: str) -> list[bytes]:
    """Spellings that some server maps to the same variable: letter case, and any punctuation for hyphens."""
    text = name.encode()
    found = [text, text.lower(), text.upper(), text.replace(b"-", b"_"), text.upper().replace(b"-", b"_")]
    found += [text.replace(b"-", b"."), text.lower().replace(b"-", b"_", 1), text.replace(b"-", b"+")]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def token(gateway: Patgate) -> Token:
    return gateway.token(EDITOR, name="claims")


@pytest.mark.parametrize("kind", ClaimKind)
@pytest.mark.parametrize("target", [b"/v1/things/1", b"/public/x", b"/ui/x"])
def test_no_claim_of_the_table_reaches_a_backend_under_any_alias(
    kind: ClaimKind, target: bytes, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    login = f"Authorization: Bearer {token.value}\r\n".encode()
    spellings = [alias for of, name in NAMES if of is kind for alias in aliases(name)]
    with gateway.connect() as connection:
        for start in range(0, len(spellings), 60):
            lines = b"".join(name + b": " + MARK + b"\r\n" for name in spellings[start : start + 60])
            head = b"GET " + target + b" HTTP/1.1\r\nHost: gateway\r\n" + login + lines + b"\r\n"
            assert connection.exchange(head).status == 200
            assert MARK not in recorder.last().head


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_claim_is_dropped_by_its_own_name(
    kind: ClaimKind, name: str, gateway: Patgate, recorder: Recorder, token: Token
) -> None:
    with gateway.connect() as connection:
        assert connection.request("GET", "/v1/things/1", headers={**token.bearer, name: "/admin"}).status == 200
    assert recorder.last().target == b"/v1/things/1"
    if name.lower().encode() not in OURS:
        assert recorder.last().all(name) == [], kind


@pytest.fixture(scope="module")
def behind_a_proxy(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    """A node that trusts the loopback, and two more headers from it."""
    config = {
        "workers": 1,
        "listen": {"proxy": {"trusted": ["127.0.0.1/32"], "trusted_claims": ["CF-Connecting-IP", "x-scheme"]}},
        "upstreams": {"app": {"servers": [backend.url]}},
        "routes": [{"path": "/**", "upstream": "app", "access": "public"}],
    }
    with gateways.lend(config) as node:
        yield node


def test_a_trusted_peer_sends_on_what_the_operator_names_and_nothing_else(
    behind_a_proxy: Patgate, recorder: Recorder
) -> None:
    """Its X-Forwarded-For and X-Forwarded-Host are trusted anyway."""
    said = b"CF-Connecting-IP: 192.0.2.7\r\nX-Scheme: https\r\nX_Scheme: mallory\r\n"
    believed = ("X-Forwarded-For", "X-Forwarded-Host", "Cf-Connecting-Ip", "X-Scheme")
    names = [name.encode() for _, name in NAMES if name not in believed]
    with behind_a_proxy.connect() as connection:
        for start in range(0, len(names), 60):
            lines = b"".join(name + b": " + MARK + b"\r\n" for name in names[start : start + 60])
            head = b"GET /x HTTP/1.1\r\nHost: gateway\r\n" + said + lines + b"\r\n"
            assert connection.exchange(head).status == 200
            seen = recorder.last()
            assert MARK not in seen.head
            assert seen.only("CF-Connecting-IP") == "192.0.2.7"
            assert seen.only("X-Scheme") == "https"


@pytest.mark.parametrize(
    "name", ["Script-Name", "X-Auth-Request-User", "X-HTTP-Method-Override", "Proxy", "Accept", "X-Forwarded-For", ""]
)
def test_a_trusted_peer_cannot_be_let_say_a_path_a_method_or_an_identity(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = Patgate(tmp_path_factory.mktemp("claims"), {"listen": {"proxy": {"trusted_claims": [name]}}})
    done = node.run("check")
    assert done.returncode == 1
    assert "listen.proxy.trusted_claims[0]" in done.stdout + done.stderr


def test_client_and_transport_are_the_kinds_that_others_can_know() -> None:
    assert frozenset((ClaimKind.CLIENT, ClaimKind.TRANSPORT)) == FROM_TRUSTED


def test_what_an_operator_adds_is_dropped_too(gateways: Pool, recorder: Recorder) -> None:
    config = {
        "workers": 1,
        "upstreams": {"app": {"servers": [recorder.url]}},
        "routes": [{"path": "/**", "upstream": "app", "access": "public"}],
        "headers": {"dropped": ["X-Scope-OrgID"]},
    }
    with gateways.lend(config) as node, node.connect() as connection:
        lines = b"X-Scope-OrgID: mallory\r\nx_scope_orgid: mallory\r\nX-Scope: kept\r\n"
        assert connection.exchange(b"GET /x HTTP/1.1\r\nHost: gateway\r\n" + lines + b"\r\n").status == 200
    assert MARK not in recorder.last().head
    assert recorder.last().only("X-Scope") == "kept"
