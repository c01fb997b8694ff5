"""How an ingress shows that it is one: at a unix socket, with a shared secret, and with a client certificate."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Pair, pair
from tests.support.gateway import Patgate, Token
from tests.support.operate import REFUSED, problems, reload, routes, write
from tests.support.process import HANGS_SECONDS, LOOPBACK, free_port, wait_until
from tests.support.rawhttp import Connection, ConnectionEnded, Response
from tests.support.recorder import Recorder

OWNER = "eve@example.org"
TARGET = "/v1/things/1"
ASKED = {"X-Original-Method": "GET", "X-Original-URI": TARGET}
DROPPED = ("patgate_connections_dropped_total{", 'listener="forward_auth"', 'cause="handshake"')
SECRET = "the-secret-of-this-ingress-0123456789"
NEXT_SECRET = "the-next-secret-of-this-ingress-0123456789"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patgate]:
    config = {
        "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
        "roles": {"editor": ["things:*"]},
        "routes": routes({"path": "/v1/{entity}/{id}"}),
        "listen": {"forward_auth": {"trusted": [LOOPBACK]}},
    }
    with Patgate(tmp_path_factory.mktemp("peers"), config) as gateway:
        gateway.expects("configuration problem", REFUSED)
        gateway.add_user(OWNER, "editor")
        yield gateway


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(OWNER)


@pytest.fixture(autouse=True)
def the_usual_configuration(node: Patgate) -> Iterator[None]:
    before = dict(node.config)
    yield
    if node.config != before:
        write(node, **before)
        reload(node)


def change(node: Patgate, **settings: Any) -> None:
    """Reload the node with these settings of its forward-auth listener, in place of the others."""
    write(node, listen={**node.config["listen"], "forward_auth": settings})
    reload(node)


def ask(connection: Connection, token: Token, headers: str = "") -> Response:
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**ASKED, **token.bearer}.items())
    return connection.exchange(f"GET /nginx HTTP/1.1\r\nHost: app.example.org\r\n{lines}{headers}\r\n".encode())


def at_socket(path: Path, *, own: str = "") -> Connection:
    """A connection to the unix socket, from a socket with an address of its ``own`` if that is given."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(HANGS_SECONDS)
    if own:
        sock.bind(own)
    sock.connect(os.fspath(path))
    return Connection(sock=sock)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_peer_of_the_unix_socket_is_trusted_and_needs_no_address(node: Patgate, token: Token, tmp_path: Path) -> None:
    path = tmp_path / "auth.sock"
    change(node, bind=f"unix:{path}")
    assert mode(path) == 0o660
    for _ in range(4):
        # New connections, so that both workers answer some.
        with at_socket(path) as connection:
            assert ask(connection, token).status == 200
            assert ask(connection, token).status == 200
            refused = connection.exchange(b"HEAD /nginx HTTP/1.1\r\nHost: a\r\n\r\n", method="HEAD")
            assert refused.status == 403
    for own in (str(tmp_path / "of-its-own"), "\0patgate-test-own"):
        with at_socket(path, own=own) as connection:
            assert ask(connection, token).status == 200
    change(node, bind=f"unix:{path}", socket_mode="0600")
    assert mode(path) == 0o600
    with at_socket(path) as connection:
        assert ask(connection, token).status == 200
    change(node, bind=f"unix:{tmp_path / 'other.sock'}")
    assert not path.exists()
    with at_socket(tmp_path / "other.sock") as connection:
        assert ask(connection, token).status == 200
    change(node, bind=f"{LOOPBACK}:{free_port()}", trusted=[LOOPBACK])
    assert not any(tmp_path.glob("*.sock"))


def test_the_file_of_the_unix_socket_survives_no_stop_and_hinders_no_start(tmp_path: Path) -> None:
    path = tmp_path / "auth.sock"
    config = {"workers": 1, "listen": {"forward_auth": {"bind": f"unix:{path}"}}}
    with Patgate(tmp_path / "node", config) as own:
        own.kill_everything()
        assert path.exists()
        own.start()
        with at_socket(path) as connection:
            assert connection.exchange(b"GET /nginx HTTP/1.1\r\nHost: a\r\n\r\n").status == 403
        own.process.signal(signal.SIGTERM)
        wait_until(lambda: not path.exists(), "the socket removed", process=own.process)


def test_a_call_without_the_shared_secret_is_refused(node: Patgate, token: Token, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    bind = f"{LOOPBACK}:{free_port()}"
    change(node, bind=bind, trusted=[LOOPBACK], secret={"file": str(file)})
    right, wrong = f"X-Patgate-Secret: {SECRET}\r\n", f"X-Patgate-Secret: {NEXT_SECRET}\r\n"

    def status(headers: str) -> int:
        with Connection(int(bind.rpartition(":")[2])) as connection:
            response = ask(connection, token, headers)
            if response.status != 200:
                assert response.json()["reason"] == "peer_secret"
            return response.status

    assert status(right) == 200
    assert status(right.lower().replace("\r\n", " \r\n")) == 200
    for headers in (
        "",
        wrong,
        right + right,
        right + wrong,
        "X-Patgate-Secret: \r\n",
        right.replace("Patgate-", "Patgate_"),
        f"X-Patgate-Secret: {SECRET}x\r\n",
        f"X-Patgate-Secret: {SECRET[:-1]}\r\n",
        f"X-Patgate-Secret: {SECRET.upper()}\r\n",
        f"X-Patgate-Secret: {SECRET}, {SECRET}\r\n",
        f"X-Patgate-Secret: {SECRET} {NEXT_SECRET}\r\n",
        f"X-Patgate-Key: {SECRET}\r\n",
    ):
        assert status(headers) == 403, headers
    file.write_text(f"{SECRET}\n{NEXT_SECRET}\n")
    reload(node)
    assert status(right) == status(wrong) == 200
    file.write_text(NEXT_SECRET)
    reload(node)
    assert (status(right), status(wrong)) == (403, 200)
    file.write_text("short")
    reload(node, expect=REFUSED)
    assert problems(node)[-1].endswith("must hold a secret of at least 32 characters of plain ASCII without spaces")
    assert status(wrong) == 200
    file.write_text(SECRET)
    change(node, bind=bind, trusted=[LOOPBACK], secret={"header": "X-Ingress-Key", "file": str(file)})
    assert (status(f"X-Ingress-Key: {SECRET}\r\n"), status(right)) == (200, 403)
    # The address still counts.
    with Connection(int(bind.rpartition(":")[2]), source="127.0.0.2") as connection:
        assert ask(connection, token, f"X-Ingress-Key: {SECRET}\r\n").status == 403
    expected = {"peer_secret", "peer_untrusted"}
    wait_until(lambda: {str(record.get("reason")) for record in node.records()} >= expected, "both reasons in the log")
    assert SECRET not in node.log and NEXT_SECRET not in node.log


def test_the_shared_secret_reaches_no_backend_through_the_proxy(token: Token, node: Patgate, tmp_path: Path) -> None:
    """A misconfigured ingress may send it to the wrong listener."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    with Recorder() as backend:
        before = node.config["upstreams"]
        write(node, upstreams={"app": {"servers": [backend.url]}})
        secret = {"header": "X-Ingress-Key", "file": str(file)}
        change(node, bind=f"{LOOPBACK}:{free_port()}", trusted=[LOOPBACK], secret=secret)
        with node.connect() as connection:
            for name in ("X-Ingress-Key", "x_ingress_key", "X-Patgate-Secret", "X.Patgate.Secret"):
                assert connection.request("GET", TARGET, headers={**token.bearer, name: SECRET}).status == 200
        assert backend.received and not any(SECRET.encode() in data for data in backend.received)
        write(node, upstreams=before)


def handshakes(node: Patgate) -> float:
    """How many connections the listener has dropped in their TLS handshake."""
    lines = node.control("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[1]) for line in lines if all(part in line for part in DROPPED))


def disconnected(port: int, server: Pair, client: Pair | None, version: ssl.TLSVersion, token: Token) -> bool:
    """Whether the listener ends the connection. With TLS 1.3, the client learns of that when it reads."""
    with socket.create_connection((LOOPBACK, port), timeout=HANGS_SECONDS) as plain:
        context = trusting(server, client, version)
        try:
            with Connection(sock=context.wrap_socket(plain, server_hostname="localhost")) as connection:
                ask(connection, token)
        except (ssl.SSLError, ConnectionEnded, ConnectionError):
            return True
    return False


def ended(connection: Connection, token: Token) -> bool:
    """Whether the listener has ended this connection."""
    try:
        ask(connection, token)
    except (ssl.SSLError, ConnectionEnded, ConnectionError):
        return True
    return False


def test_a_connection_without_tls_ends_where_tls_is_demanded(node: Patgate, token: Token, tmp_path: Path) -> None:
    own = pair(tmp_path, "gateway")
    port = free_port()
    listener = {"bind": f"{LOOPBACK}:{port}", "trusted": [LOOPBACK]}
    change(node, **listener)
    with Connection(port) as before:
        assert ask(before, token).status == 200
        change(node, **listener, tls={"certificate": str(own.certificate), "key": str(own.key)})
        assert ended(before, token)


def connected(port: int, server: Pair, client: Pair | None, version: ssl.TLSVersion) -> Connection:
    plain = socket.create_connection((LOOPBACK, port), timeout=HANGS_SECONDS)
    return Connection(sock=trusting(server, client, version).wrap_socket(plain, server_hostname="localhost"))


def trusting(server: Pair, client: Pair | None, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=server.certificate)
    context.minimum_version = context.maximum_version = version
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_ingress_without_a_certificate_of_the_right_ca_is_disconnected(
    version: ssl.TLSVersion, node: Patgate, token: Token, tmp_path: Path
) -> None:
    own, ingress, stranger = (pair(tmp_path, name) for name in ("gateway", "ingress", "stranger"))
    port = free_port()
    tls = {"certificate": str(own.certificate), "key": str(own.key)}
    listener = {"bind": f"{LOOPBACK}:{port}", "trusted": [LOOPBACK]}
    change(node, **listener, tls=tls)
    with connected(port, own, None, version) as before:
        assert ask(before, token).status == 200
        change(node, **listener, tls={**tls, "client_ca": str(ingress.certificate)})
        assert ended(before, token), "a connection without a certificate stays open"
        for _ in range(2):
            with connected(port, own, ingress, version) as connection:
                assert ask(connection, token).status == 200
        count = handshakes(node)
        assert disconnected(port, own, None, version, token)
        assert disconnected(port, own, stranger, version, token)
        with Connection(port) as plain, pytest.raises((ConnectionEnded, ConnectionError)):
            ask(plain, token)
        wait_until(lambda: handshakes(node) == count + 3, "three dropped handshakes", process=node.process)
    with connected(port, own, ingress, version) as before:
        assert ask(before, token).status == 200
        reload(node)
        assert ask(before, token).status == 200
        change(node, **listener, tls={**tls, "client_ca": str(stranger.certificate)})
        assert ended(before, token), "a connection with a certificate of the former CA stays open"
    with connected(port, own, stranger, version) as connection:
        assert ask(connection, token).status == 200
    assert disconnected(port, own, ingress, version, token)
    # Workers report their counts some time later: the next test of this node begins with a count that is complete.
    wait_until(lambda: handshakes(node) == count + 4, "the last dropped handshake", process=node.process)
