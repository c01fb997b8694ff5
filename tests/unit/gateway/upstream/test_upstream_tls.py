"""HTTPS to servers: which certificates are accepted, under which name, and the client certificate."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Pair, pair
from tests.unit.gateway.kit import NEVER, BackendConnection, field_lines, get, response, until
from tests.unit.gateway.upstream.watched import backend_at, fields, logged, watched

ONE, TWO = "127.0.0.1", "127.0.0.2"


class Secure:
    """A TLS server that records the requested server names and the subjects of client certificates."""

    def __init__(self, server: Pair, client: Pair | None = None) -> None:
        self.names: list[str | None] = []
        self.subjects: list[Any] = []
        self.connections = 0
        self.open = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(server.certificate, server.key)
        self.context.set_alpn_protocols(["h2", "http/1.1"])
        self.context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        if client is not None:
            self.context.load_verify_locations(client.certificate)
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "http/1.1"
        self.connections += 1
        self.subjects.append(dict(part[0] for part in (tls.getpeercert() or {}).get("subject", ())))
        connection = BackendConnection(0, reader, writer)
        self.open += 1
        try:
            while True:
                (host,) = field_lines(await connection.request(), "host")
                await connection.send(response(host))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            # A TLS transport closes in steps, for which the event loop must still run.
            with suppress(OSError):
                await writer.wait_closed()
            self.open -= 1


@asynccontextmanager
async def secure(server: Pair, client: Pair | None = None, *, host: str = ONE) -> AsyncIterator[Secure]:
    one = Secure(server, client)
    listening = await asyncio.start_server(one.serve, host, 0, ssl=one.context)
    one.port = listening.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        listening.close()
        await until(lambda: not one.open)


@pytest.fixture(scope="module")
def backend_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("backend"), "backend.test")


@pytest.fixture(scope="module")
def client_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("client"), "patgate.test")


@pytest.fixture(scope="module")
def stranger_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("stranger"), "stranger.test")


async def outcome(table: dict[str, list[str]], **settings: Any) -> tuple[int, str]:
    async with watched(table, **settings) as gateway:
        answer = await (await gateway.client()).ask(get("/open/a"))
        return answer.status, answer.body.decode() if answer.status == 200 else answer.reason


async def test_the_host_name_is_sent_and_verified_whatever_its_address(backend_pair: Pair) -> None:
    async with secure(backend_pair) as one:
        servers = [f"https://backend.test:{one.port}"]
        tls = {"ca": backend_pair.certificate}
        assert await outcome({"backend.test": [ONE]}, servers=servers, tls=tls) == (200, "gateway")
        assert await outcome({"backend.test": [ONE]}, servers=servers, tls=tls, preserve_host=False) == (
            200,
            f"backend.test:{one.port}",
        )
        assert one.names == ["backend.test"] * 2
        # Without a configured client certificate, none is presented.
        assert one.subjects == [{}] * 2


async def test_a_certificate_for_another_name_is_refused_and_the_log_says_why(
    backend_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async with secure(backend_pair) as one:
        servers, tls = [f"https://other.test:{one.port}"], {"ca": backend_pair.certificate}
        assert await outcome({"other.test": [ONE]}, servers=servers, tls=tls) == (502, "upstream_refused")
        assert logged(caplog, level=logging.WARNING) == ["upstream server is unreachable"]
        said = fields(caplog, "upstream server is unreachable")
        assert said["why"] == "Hostname mismatch, certificate is not valid for 'other.test'."
        # The operator configures the other name that this server's certificate carries.
        named = tls | {"name": "backend.test"}
        assert await outcome({"other.test": [ONE]}, servers=servers, tls=named) == (200, "gateway")
        assert one.names[-1] == "backend.test"


async def test_an_address_is_verified_as_an_address(backend_pair: Pair) -> None:
    tls = {"ca": backend_pair.certificate}
    async with secure(backend_pair) as one, secure(backend_pair, host=TWO) as two:
        assert (await outcome({}, servers=[f"https://{ONE}:{one.port}"], tls=tls))[0] == 200
        assert (await outcome({}, servers=[f"https://{TWO}:{two.port}"], tls=tls)) == (502, "upstream_refused")
        assert (await outcome({}, servers=[f"https://{TWO}:{two.port}"], tls=tls | {"name": "backend.test"}))[0] == 200


async def test_an_untrusted_certificate_authority_is_refused_unless_verification_is_off(
    backend_pair: Pair, stranger_pair: Pair
) -> None:
    async with secure(backend_pair) as one:
        table, servers = {"backend.test": [ONE]}, [f"https://backend.test:{one.port}"]
        assert await outcome(table, servers=servers) == (502, "upstream_refused")
        for ca, status in ((stranger_pair, 502), (backend_pair, 200)):
            assert (await outcome(table, servers=servers, tls={"ca": ca.certificate}))[0] == status
        assert (await outcome(table, servers=servers, tls={"verify": False}))[0] == 200


async def test_the_client_certificate_is_presented_to_a_server_that_requests_one(
    backend_pair: Pair, client_pair: Pair, stranger_pair: Pair
) -> None:
    async with secure(backend_pair, client_pair) as one:
        table, servers = {"backend.test": [ONE]}, [f"https://backend.test:{one.port}"]
        ours = {"ca": backend_pair.certificate, "certificate": client_pair.certificate, "key": client_pair.key}
        assert (await outcome(table, servers=servers, tls=ours))[0] == 200
        assert one.subjects == [{"commonName": "patgate.test"}]
        # TLS 1.3 rejects a client certificate after the client's handshake, so the connection is reset.
        theirs = ours | {"certificate": stranger_pair.certificate, "key": stranger_pair.key}
        for wrong in (theirs, {"ca": backend_pair.certificate}):
            assert (await outcome(table, servers=servers, tls=wrong))[0] == 502
        assert one.connections == 1


async def test_an_expired_certificate_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = pair(tmp_path, "backend.test", made="2020-01-01")
    async with secure(old) as one:
        servers = [f"https://backend.test:{one.port}"]
        async with watched({"backend.test": [ONE]}, servers=servers, tls={"ca": old.certificate}) as gateway:
            client = await gateway.client()
            for _ in range(3):
                assert (await client.ask(get("/open/a"))).status == 502
    assert logged(caplog) == ["upstream server is unreachable"]
    assert fields(caplog, "upstream server is unreachable")["why"] == "certificate has expired"


async def test_health_checks_speak_tls_with_the_same_certificates(
    backend_pair: Pair, client_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    tls = {"ca": backend_pair.certificate, "certificate": client_pair.certificate, "key": client_pair.key}
    health = {"path": "/up", "interval": 0.02, "timeout": NEVER, "fall": 1}
    async with secure(backend_pair, client_pair) as one:
        servers = [f"https://backend.test:{one.port}"]
        async with watched({"backend.test": [ONE]}, servers=servers, tls=tls, health=health) as gateway:
            await until(lambda: one.connections >= 3)
            assert gateway.healthy == [True]
            assert set(one.names) == {"backend.test"}
        async with watched({"backend.test": [ONE]}, servers=servers, tls=tls | {"ca": None}, health=health) as gateway:
            await until(lambda: gateway.healthy == [False])
    assert "self-signed certificate" in fields(caplog, "upstream server is unhealthy")["why"]


async def test_a_plain_server_where_tls_is_expected_is_a_502(backend_pair: Pair) -> None:
    async def refuse(connection: BackendConnection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with backend_at(refuse, ONE, 0) as plain:
        servers = [f"https://backend.test:{plain.port}"]
        tls = {"ca": backend_pair.certificate}
        assert await outcome({"backend.test": [ONE]}, servers=servers, tls=tls) == (502, "upstream_refused")


async def test_certificate_files_are_read_when_the_pool_is_created(backend_pair: Pair, tmp_path: Path) -> None:
    """A reload creates the pool again, and so reads files that were renewed under the same name."""
    ca = tmp_path / "ca.pem"
    shutil.copy(backend_pair.certificate, ca)
    renewed = pair(tmp_path, "backend.test")
    async with secure(backend_pair) as one, secure(renewed) as two:
        tls = {"ca": ca}
        first, second = ([f"https://backend.test:{each.port}"] for each in (one, two))
        assert (await outcome({"backend.test": [ONE]}, servers=first, tls=tls))[0] == 200
        shutil.copy(renewed.certificate, ca)
        assert (await outcome({"backend.test": [ONE]}, servers=second, tls=tls))[0] == 200
        assert (await outcome({"backend.test": [ONE]}, servers=first, tls=tls))[0] == 502
