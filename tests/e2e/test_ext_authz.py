"""The listener ``ext_authz`` of real processes: opened, changed and closed by a reload, its peers, and its drain."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import pair
from tests.support.gateway import Patgate, Token
from tests.support.operate import reload, routes, write
from tests.support.process import LOOPBACK, accepts, free_port, wait_until
from tests.unit.gateway.ext_authz.calls import Verdict, check
from tests.unit.gateway.ext_authz.envoy import Envoy
from tests.unit.gateway.kit import until

OWNER = "eve@example.org"
SECRET = "the-secret-of-this-ingress-0123456789"
CONFIG = {
    "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
    "roles": {"editor": ["things:*"]},
    "routes": routes({"path": "/v1/{entity}/{id}"}),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patgate]:
    """It begins without the listener, so that its workers load the extra while they serve."""
    with Patgate(tmp_path_factory.mktemp("ext-authz"), CONFIG) as gateway:
        gateway.add_user(OWNER, "editor")
        yield gateway


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(OWNER)


def change(node: Patgate, **settings: Any) -> None:
    write(node, listen={**node.config["listen"], "ext_authz": settings})
    reload(node)


async def connected(where: int | Path, context: ssl.SSLContext | None = None) -> Envoy:
    if isinstance(where, Path):
        return Envoy(*await asyncio.open_unix_connection(str(where)))
    return Envoy(*await asyncio.open_connection(LOOPBACK, where, ssl=context))


def ask(where: int | Path, token: Token, *, context: ssl.SSLContext | None = None, **metadata: str) -> Verdict:
    """The verdict on a call over a new connection."""

    async def one() -> Verdict:
        envoy = await connected(where, context)
        try:
            return await envoy.call(message(token), **metadata)
        finally:
            await envoy.close()

    return asyncio.run(one())


def message(token: Token) -> bytes:
    return check(raw=[(name.lower().encode(), value.encode()) for name, value in token.bearer.items()])


def test_a_reload_opens_changes_and_closes_the_listener(node: Patgate, token: Token, tmp_path: Path) -> None:
    port = free_port()
    change(node, bind=f"{LOOPBACK}:{port}", trusted=[LOOPBACK])
    for _ in range(4):
        # New connections, so that both workers answer some.
        found = ask(port, token)
        assert (found.code, found.names["X-Auth-Role"], found.removed) == (0, "editor", ["authorization"])
    change(node, bind=f"{LOOPBACK}:{port}", trusted=["192.0.2.1"])
    assert b"peer_untrusted" in ask(port, token).body
    (tmp_path / "secret").write_text(SECRET)
    change(node, bind=f"{LOOPBACK}:{port}", trusted=[LOOPBACK], secret={"file": str(tmp_path / "secret")})
    assert b"peer_secret" in ask(port, token).body
    assert b"peer_secret" in ask(port, token, x_patgate_secret="x" * 40).body
    assert ask(port, token, x_patgate_secret=SECRET).code == 0
    path = tmp_path / "authz.sock"
    change(node, bind=f"unix:{path}")
    assert ask(path, token).code == 0
    assert not accepts(port)
    write(node, listen={name: each for name, each in node.config["listen"].items() if name != "ext_authz"})
    reload(node)
    assert not path.exists()


def test_a_client_certificate_is_required_where_one_is_configured(node: Patgate, token: Token, tmp_path: Path) -> None:
    own, ingress = pair(tmp_path, "own"), pair(tmp_path, "ingress")
    port = free_port()
    tls = {"certificate": str(own.certificate), "key": str(own.key), "client_ca": str(ingress.certificate)}
    change(node, bind=f"{LOOPBACK}:{port}", trusted=[LOOPBACK], tls=tls)
    context = ssl.create_default_context(cafile=own.certificate)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with pytest.raises((AssertionError, OSError)):
        ask(port, token, context=context)
    context.load_cert_chain(ingress.certificate, ingress.key)
    assert ask(port, token, context=context).code == 0


def test_a_frozen_authority_is_a_refusal_in_time_and_a_stop_announces_itself(tmp_path: Path) -> None:
    listen = {"ext_authz": {"trusted": [LOOPBACK], "timeout": "1s"}}
    with Patgate(tmp_path, {**CONFIG, "workers": 1, "listen": listen}) as gateway:
        gateway.add_user(OWNER, "editor")
        cold = gateway.token(OWNER)

        async def stopped() -> tuple[Verdict, list[int]]:
            envoy = await connected(gateway.ext_authz_port)
            authority = gateway.authority_pid()
            os.kill(authority, signal.SIGSTOP)
            try:
                number = envoy.begin(message(cold))
                await until(lambda: number in envoy.ended)
                gateway.process.signal(signal.SIGTERM)
                await until(lambda: envoy.closed)
            finally:
                os.kill(authority, signal.SIGCONT)
                await envoy.close()
            return envoy.answer(number), envoy.goaway

        found, goaway = asyncio.run(stopped())
        assert (found.status, found.names["Retry-After"]) == (503, "1")
        assert goaway and {*goaway} == {0}
        wait_until(lambda: gateway.process.exit_code is not None, "the end of patgate")
