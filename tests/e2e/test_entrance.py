"""Downstream connections: through HAProxy, with TLS, many at once, and with too few file descriptors."""

from __future__ import annotations

import resource
import socket
import ssl
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.backends import program
from tests.support.certificates import pair
from tests.support.gateway import Patgate
from tests.support.pool import Pool
from tests.support.process import HANGS_SECONDS, LOOPBACK, Process, accepts, free_port, wait_until
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder
from tests.support.scripted import Peer, ScriptedBackend, response

ROUTES = [{"path": "/public/**", "upstream": "app", "access": "public"}]
CLIENT = "127.0.0.3"
HAPROXY = """\
global
  maxconn 100
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen first
  bind {host}:{first}
  server gateway {host}:{gateway} send-proxy check inter 200ms check-send-proxy
listen second
  bind {host}:{second}
  server gateway {host}:{gateway} send-proxy-v2 proxy-v2-options crc32c,unique-id check inter 200ms check-send-proxy
"""


def config(server: str, **listen: Any) -> dict[str, Any]:
    return {
        "workers": 1,
        "listen": {"proxy": listen},
        "upstreams": {"app": {"servers": [server]}},
        "routes": ROUTES,
        "log": {"access": "all"},
    }


def count(node: Patgate, metric: str, **labels: str) -> float:
    page = node.control("GET", "/metrics").body.decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(each.value for each in samples if each.name == metric and labels.items() <= each.labels.items())


@contextmanager
def haproxy(directory: Path, gateway: int) -> Iterator[list[int]]:
    """The ports of an HAProxy that uses version 1 of the PROXY protocol on one port and version 2 on the other."""
    first, second = free_port(), free_port()
    file = directory / "haproxy.cfg"
    file.write_text(HAPROXY.format(host=LOOPBACK, first=first, second=second, gateway=gateway))
    with Process([program("haproxy"), "-db", "-f", str(file)], name="haproxy", directory=directory) as process:
        wait_until(lambda: accepts(first) and accepts(second), "haproxy listening", process=process)
        yield [first, second]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_behind_haproxy_the_client_is_the_one_that_haproxy_names(
    secure: bool, gateways: Pool, tmp_path: Path, recorder: Recorder
) -> None:
    """HAProxy's health checks, which use separate connections, count neither as clients nor as errors."""
    listen: dict[str, Any] = {"proxy_protocol": [f"{LOOPBACK}/32"]}
    trust = ssl.create_default_context()
    if secure:
        made = pair(tmp_path)
        listen["tls"] = {"certificate": str(made.certificate), "key": str(made.key)}
        trust.load_verify_locations(made.certificate)
    whole = config(recorder.url, **listen)
    first = f"/first-{'tls' if secure else 'plain'}"
    whole["routes"] = [*ROUTES, {"path": first, "upstream": "app", "access": "public"}]

    def connect(port: int) -> Connection:
        sock = socket.create_connection((LOOPBACK, port), timeout=HANGS_SECONDS, source_address=(CLIENT, 0))
        return Connection(sock=trust.wrap_socket(sock, server_hostname="gateway") if secure else sock)

    with gateways.lend(whole) as node, haproxy(tmp_path, node.port) as ports:
        # Its worker reports all counts together: with this request, those of earlier tests are complete.
        with connect(ports[0]) as client:
            assert client.request("GET", first).status == 200
        wait_until(lambda: count(node, "patgate_requests_total", route=first) == 1, "the counts of earlier tests")
        dropped = drops(node)
        for port in ports:
            for _ in range(3):
                with connect(port) as client:
                    assert client.request("GET", "/public/a").status == 200
                assert recorder.last().all("x-forwarded-for") == [CLIENT.encode()]
                assert recorder.last().all("x-forwarded-proto") == [b"https" if secure else b"http"]
        # A client that bypasses HAProxy, and so sends no PROXY header, is dropped.
        with node.connect() as client:
            client.send(b"GET /public/b HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert client.read_to_end() == b""
        wait_until(lambda: drops(node) == dropped + 1, "the drop counted")
        # One log line for each request; the last one is written after its response.
        wait_until(lambda: len(peers(node)) == 7, "every request in the log")
        assert {*peers(node)} == {CLIENT}


def drops(node: Patgate) -> float:
    """How many connections were dropped for their PROXY header."""
    return count(node, "patgate_connections_dropped_total", cause="proxy_header")


def peers(node: Patgate) -> list[str]:
    """The client address of each logged request."""
    return [record["peer"] for record in node.records() if record.get("event") == "request"]


def test_a_listener_may_have_limits_of_its_own(gateways: Pool, recorder: Recorder) -> None:
    listen = {"limits": {"body": 10, "headers": 8, "request_line": 256, "header_bytes": 1024}}
    whole = config(recorder.url, **listen) | {"limits": {"body": 5, "headers": 50}}
    with gateways.lend(whole) as node:
        for size, status in ((10, 200), (11, 413)):
            with node.connect() as client:
                assert client.request("POST", "/public/a", body=b"x" * size).status == status
        for fields, status in ((7, 200), (8, 431)):
            with node.connect() as client:
                headers = {f"X-{number}": "y" for number in range(fields)}
                assert client.request("GET", "/public/a", headers=headers).status == status
        for length, status in ((256, 200), (257, 414)):
            with node.connect() as client:
                target = "/public/".ljust(length - len("GET  HTTP/1.1"), "a")
                assert client.request("GET", target).status == status
        for length, status in ((1024, 200), (1025, 431)):
            with node.connect() as client:
                head = b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nX: "
                filled = head + b"y" * (length - len(head) - 4) + b"\r\n\r\n"
                assert client.exchange(filled).status == status


def test_a_worker_out_of_descriptors_serves_who_is_there_and_later_everybody(
    tmp_path: Path, recorder: Recorder
) -> None:
    with Patgate(tmp_path, config(recorder.url)) as node, ExitStack() as stack:
        (worker,) = node.worker_pids()
        served = stack.enter_context(node.connect())
        assert served.request("GET", "/public/a").status == 200
        before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used, before[1]))
        waiting = [stack.enter_context(node.connect()) for _ in range(50)]
        for client in waiting:
            client.send(b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
        wait_until(lambda: count(node, "patgate_accept_pauses_total", cause="resources") >= 2, "accepting rests")
        assert served.request("GET", "/public/a").status == 200
        assert node.worker_pids() == [worker]
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
        assert {client.read_response().status for client in waiting} == {200}
        said = [record for record in node.records() if "no more connections" in record.get("event", "")]
        assert len(said) == 1


def test_no_request_fails_for_want_of_a_descriptor(tmp_path: Path) -> None:
    """All requests of far more clients than descriptors succeed, although each needs a connection to the backend."""

    def plan(peer: Peer) -> None:
        while True:
            peer.head()
            peer.send(response(fields=b"Connection: close\r\n"))
            return

    prefix = [program("prlimit"), "--nofile=180:180"]
    with ScriptedBackend() as backend:
        backend.use(plan)
        whole = config(backend.url, connections=10_000)
        with Patgate(tmp_path, whole, prefix=prefix) as node, ThreadPoolExecutor(8) as pool:

            def ask_with_many(_: int) -> set[int]:
                with ExitStack() as stack:
                    clients = []
                    for _ in range(40):
                        # At once: a connection that waits for its first request counts as idle after a second.
                        clients.append(stack.enter_context(node.connect()))
                        clients[-1].send(b"GET /public/a HTTP/1.1\r\nHost: gateway\r\n\r\n")
                    return {client.read_response().status for client in clients}

            assert set().union(*pool.map(ask_with_many, range(8))) == {200}
            wait_until(lambda: count(node, "patgate_requests_total") == 8 * 40, "every request counted")
            assert count(node, "patgate_accept_pauses_total", cause="resources") == 0
            assert count(node, "patgate_accept_pauses_total", cause="limit") > 0
            assert "fewer connections than the settings allow" in node.log


def test_idle_connections_starve_nobody(gateways: Pool, recorder: Recorder) -> None:
    with gateways.lend(config(recorder.url, connections=8)) as node, ExitStack() as stack:
        idle = [stack.enter_context(node.connect()) for _ in range(8)]
        for client in idle:
            assert client.request("GET", "/public/a").status == 200
        for _ in range(4):
            late = stack.enter_context(node.connect())
            assert late.request("GET", "/public/a").status == 200
        assert idle[0].read_to_end() == b""
        wait_until(lambda: count(node, "patgate_connections_dropped_total", cause="room") > 0, "the drop counted")


def test_a_client_that_resets_while_it_waits_is_no_harm(gateways: Pool, recorder: Recorder) -> None:
    with gateways.lend(config(recorder.url, proxy_protocol=[f"{LOOPBACK}/32"])) as node:
        for beginning in (b"", b"PROXY TCP4 ", b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN\r\nGET /public"):
            for _ in range(20):
                with node.connect() as client:
                    client.send(beginning)
                    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with node.connect() as client:
            client.send(b"PROXY UNKNOWN\r\n")
            assert client.request("GET", "/public/a").status == 200
        assert "Traceback" not in node.log
