"""SIGHUP replaces the configuration in every process at once, closes no connection and loses no request."""

from __future__ import annotations

import resource
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.certificates import pair
from tests.support.gateway import Patgate, Token
from tests.support.load import Load
from tests.support.operate import (
    REFUSED,
    RELOADED,
    metric,
    outcomes,
    problems,
    reload,
    routes,
    settle_spares,
    write,
)
from tests.support.process import HANGS_SECONDS, LOOPBACK, accepts, free_port, wait_until
from tests.support.rawhttp import Connection
from tests.support.recorder import Recorder
from tests.support.scripted import Peer, ScriptedBackend, response
from tests.support.websocket import ACCEPTED, TEXT, Client, frame, read_frame

OWNER = "eve@example.org"
TARGET = "/v1/things/1"
ROUTES = routes({"path": "/v1/{entity}/{id}"}, {"path": "/public/**", "access": "public"})
ROLES = {"editor": ["things:*"], "viewer": ["things:read"]}
REFUSAL = "reload refused: the previous configuration stays in use"
OK_METRIC = "patgate_config_last_reload_successful"
TIME_METRIC = "patgate_config_last_reload_success_timestamp_seconds"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, backend: Recorder) -> Iterator[Patgate]:
    config = {"upstreams": {"app": {"servers": [backend.url]}}, "roles": ROLES, "routes": ROUTES}
    with Patgate(tmp_path_factory.mktemp("reload"), config) as gateway:
        gateway.expects("configuration problem", REFUSAL, "the addresses of the listeners are not published")
        gateway.expects("child ended", "worker does not follow a reload and is ended")
        gateway.add_user(OWNER, "editor")
        yield gateway


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(OWNER)


@pytest.fixture(autouse=True)
def the_usual_configuration(node: Patgate) -> Iterator[None]:
    before = dict(node.config)
    yield
    if node.config != before or node.config_file.read_text().startswith("#"):
        # Without the parts that a test added, which ``write`` alone would keep.
        node.config = before
        write(node)
        reload(node)


def test_kept_alive_connections_lose_no_request_through_reloads_good_and_bad(node: Patgate, token: Token) -> None:
    """Every load has one connection to one worker for the whole time: if it is closed, the load ends."""
    with ExitStack() as stack:
        kept = [stack.enter_context(each) for each in node.connection_to_each_worker().values()]
        loads = [
            stack.enter_context(Load(partial(lambda one: one, connection), TARGET, token.bearer, reconnects=False))
            for connection in kept
        ]
        newcomers = stack.enter_context(Load(node.connect, TARGET, token.bearer))
        for turn in range(6):
            if turn % 3 == 2:
                node.config_file.write_text("# a mistake in it\nroutes: 7\n")
                reload(node, expect=REFUSED)
            else:
                write(node, routes=[*ROUTES, {"path": f"/turn/{turn}", "access": "denied"}])
                reload(node)
            for load in (*loads, newcomers):
                load.wait_for_more(5)
    for load in (*loads, newcomers):
        assert load.statuses() == {200}


def test_a_route_that_a_reload_denies_is_refused_on_every_connection_when_it_is_done(
    node: Patgate, token: Token
) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(each) for each in node.connection_to_each_worker().values()]
        for connection in connections:
            assert connection.request("GET", TARGET, headers=token.bearer).status == 200
        write(node, routes=[{"path": "/v1/things/1", "access": "denied"}, *ROUTES])
        reload(node)
        for connection in connections:
            refused = connection.request("GET", TARGET, headers=token.bearer)
            assert (refused.status, refused.json()["reason"]) == (403, "route_denied")
            assert connection.request("GET", "/v1/things/2", headers=token.bearer).status == 200


def test_roles_of_the_configuration_follow_it(node: Patgate, token: Token) -> None:
    with node.connect() as connection:
        assert connection.request("DELETE", TARGET, headers=token.bearer).status == 200
        write(node, roles={**ROLES, "editor": ["things:read"]})
        reload(node)
        assert connection.request("DELETE", TARGET, headers=token.bearer).status == 403
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200


def test_where_a_token_may_be_presented_follows_it_for_known_tokens_too(node: Patgate, token: Token) -> None:
    header = {"X-API-Key": token.value}
    with node.connect() as connection:
        assert connection.request("GET", TARGET, headers=header).status == 200
        write(node, credentials=["bearer"])
        reload(node)
        refused = connection.request("GET", TARGET, headers=header)
        assert (refused.status, refused.json()["reason"]) == (400, "token_misplaced")
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200


def test_the_format_of_refusals_follows_it_everywhere_and_on_one_route(node: Patgate) -> None:
    def types() -> tuple[str | None, str | None]:
        """Of a refusal on the first route, and of one without a route."""
        targets = (TARGET, "/nowhere")
        one, other = (connection.request("GET", target).get("Content-Type") for target in targets)
        return one, other

    with node.connect() as connection:
        assert types() == ("application/problem+json", "application/problem+json")
        write(node, refusals="json")
        reload(node)
        assert types() == ("application/json", "application/json")
        write(node, routes=[{**ROUTES[0], "refusals": "text"}, *ROUTES[1:]])
        reload(node)
        assert types() == ("text/plain; charset=utf-8", "application/json")


def test_a_configuration_with_mistakes_is_refused_with_each_line_and_the_one_before_goes_on(
    node: Patgate, token: Token
) -> None:
    known = len(problems(node))
    with node.connect() as connection:
        node.config_file.write_text(node.config_file.read_text() + "rotes: []\nworkers: many\n")
        reload(node, expect=REFUSED)
        checked = node.run("check")
        assert checked.returncode == 1
        assert problems(node)[known:] == checked.stderr.splitlines()
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200
        wait_until(lambda: metric(node, OK_METRIC) == 0, "the metric of a refused reload")
        write(node)
        began = time.time()
        reload(node)
        wait_until(lambda: metric(node, OK_METRIC) == 1, "the metric of a good reload")
        assert metric(node, TIME_METRIC) >= began - 1
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200


def test_reloads_leave_no_descriptor_behind(node: Patgate, token: Token) -> None:
    def open_files() -> dict[int, int]:
        pids = [node.process.pid, node.authority_pid(), *node.all_workers()]
        return {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids}

    reload(node)
    settle_spares(node)  # the supervisor has descriptors of each
    before = open_files()
    for turn in range(8):
        write(node, roles={**ROLES, f"role-{turn}": ["things:list"]})
        reload(node)
    node.config_file.write_text("routes: 7\n")
    reload(node, expect=REFUSED)
    settle_spares(node)

    def no_more() -> bool:
        now = open_files()
        assert now.keys() == before.keys()
        return all(now[pid] <= before[pid] for pid in now)

    wait_until(no_more, f"no more descriptors than {before}")
    write(node, roles=ROLES)
    reload(node)


def test_what_the_store_stands_on_is_refused_by_name(node: Patgate, token: Token) -> None:
    before = dict(node.config)
    write(node, brand="other", data_dir=str(node.directory / "elsewhere"))
    reload(node, expect=REFUSED)
    said = [record["problem"] for record in node.records() if record["event"] == REFUSED and "problem" in record]
    assert "brand and data_dir can only change when patgate is restarted" in str(said[-1])
    assert not (node.directory / "elsewhere").exists()
    write(node, **before)


def test_an_address_that_cannot_be_had_is_refused_and_another_is_taken(node: Patgate, token: Token) -> None:
    old, new = node.port, free_port()
    listen = node.config["listen"]
    with node.connect() as connection, socket.create_server((LOOPBACK, 0)) as taken:
        where = f"{LOOPBACK}:{taken.getsockname()[1]}"
        write(node, listen={**listen, "proxy": {"bind": where}})
        reload(node, expect=REFUSED)
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200
        write(node, listen={**listen, "proxy": {"bind": f"{LOOPBACK}:{new}"}})
        reload(node)
        wait_until(lambda: not accepts(old), "the old address closed")
        with Connection(new) as there:
            assert there.request("GET", TARGET, headers=token.bearer).status == 200
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200


def test_the_number_of_workers_follows_it_and_nobody_is_lost(node: Patgate, token: Token) -> None:
    with Load(node.connect, TARGET, token.bearer) as newcomers:
        for count in (3, 1, 2):
            write(node, workers=count)
            reload(node)
            wait_until(partial(has_workers, node, count), f"{count} workers")
            newcomers.wait_for_more(20)
            wait_until(node.is_ready, "ready")
    # A connection that is idle when its worker drains is closed, as any idle one may be; its client reconnects.
    assert newcomers.statuses() <= {200, None}
    assert newcomers.count(None) <= 4


def has_workers(node: Patgate, count: int) -> bool:
    return len(node.worker_pids()) == count


def test_reloads_in_quick_succession_end_in_the_newest_configuration(tmp_path: Path, backend: Recorder) -> None:
    """The gateway is this test's own: nothing shows when the last reload has ended, because signals become one."""
    config = {"workers": 1, "upstreams": {"app": {"servers": [backend.url]}}, "routes": ROUTES}
    with Patgate(tmp_path, config) as node:
        for turn in range(5):
            write(node, routes=[{"path": f"/turn/{turn}", "access": "public", "upstream": "app"}, *ROUTES])
            node.process.signal(signal.SIGHUP)
        with node.connect() as connection:
            wait_until(lambda: connection.request("GET", "/turn/4").status == 200, "the newest configuration")
            assert connection.request("GET", "/turn/0").status == 403
        wait_until(lambda: outcomes(node), "the outcome", process=node.process)
        assert set(outcomes(node)) == {RELOADED}
        node.expects(REFUSAL)  # the outcome of a reload that waits when the gateway ends


def test_a_worker_that_dies_in_a_reload_comes_back_with_the_new_configuration(node: Patgate, token: Token) -> None:
    before = len(outcomes(node))
    write(node, routes=[{"path": "/new", "access": "public", "upstream": "app"}, *ROUTES])
    victim = node.all_workers()[0]
    restarted = count_of(node, "child restarted")
    node.process.signal(signal.SIGHUP)
    node.kill(victim)
    wait_until(lambda: outcomes(node)[before:], "the end of the reload", process=node.process)
    assert set(outcomes(node)[before:]) == {RELOADED}
    wait_until(lambda: count_of(node, "child restarted") > restarted, "the worker replaced")
    for connection in node.connection_to_each_worker().values():
        with connection:
            assert connection.request("GET", "/new").status == 200


def count_of(node: Patgate, event: str) -> int:
    return [record["event"] for record in node.records()].count(event)


def test_new_handshakes_get_the_new_certificate_and_old_connections_go_on(node: Patgate, token: Token) -> None:
    directory = node.directory
    files = {"certificate": str(directory / "serving.pem"), "key": str(directory / "serving.key")}
    first, second = pair(directory, "first"), pair(directory, "second")
    install(first.certificate.read_bytes(), first.key.read_bytes(), files)
    listen = node.config["listen"]
    write(node, listen={**listen, "proxy": {**listen["proxy"], "tls": files}})
    reload(node)
    with Connection(sock=tls(node.port, first.certificate)) as kept:
        assert kept.request("GET", TARGET, headers=token.bearer).status == 200
        install(second.certificate.read_bytes(), first.key.read_bytes(), files)
        reload(node, expect=REFUSED)
        with Connection(sock=tls(node.port, first.certificate)) as unchanged:
            assert unchanged.request("GET", TARGET, headers=token.bearer).status == 200
        install(second.certificate.read_bytes(), second.key.read_bytes(), files)
        reload(node)
        with Connection(sock=tls(node.port, second.certificate)) as renewed:
            assert renewed.request("GET", TARGET, headers=token.bearer).status == 200
        assert kept.request("GET", TARGET, headers=token.bearer).status == 200


def install(certificate: bytes, key: bytes, files: dict[str, str]) -> None:
    Path(files["certificate"]).write_bytes(certificate)
    Path(files["key"]).write_bytes(key)


def tls(port: int, certificate: Path) -> ssl.SSLSocket:
    """A connection to a server that has this certificate; the handshake fails with any other."""
    context = ssl.create_default_context(cafile=certificate)
    return context.wrap_socket(
        socket.create_connection((LOOPBACK, port), timeout=HANGS_SECONDS), server_hostname="localhost"
    )


def test_what_is_under_way_goes_on_unless_the_new_configuration_refuses_it(node: Patgate, token: Token) -> None:
    """A WebSocket and a download continue through a reload; one whose route is denied is cut."""
    authorization = b"Authorization: Bearer " + token.value.encode() + b"\r\n"
    with ScriptedBackend() as scripted, node.connect() as loading:
        scripted.use(tunnel_or_download)
        write(node, upstreams={**node.config["upstreams"], "slow": {"servers": [scripted.url]}})
        slow = [{"path": "/slow/{entity}/{id}", "upstream": "slow"}]
        write(node, routes=[*slow, *ROUTES])
        reload(node)
        with node.connect() as socket_connection:
            client = Client(socket_connection.socket)
            assert client.open(b"/slow/things/ws", authorization) == 101
            loading.send(b"GET /slow/things/1 HTTP/1.1\r\nHost: gateway\r\n" + authorization + b"\r\n")
            (download,) = wait_until(
                lambda: [peer for peer in scripted.peers if peer.targets == ["/slow/things/1"]], "the download begun"
            )
            write(node, routes=[*slow, *ROUTES, {"path": "/more", "access": "denied"}])
            reload(node)
            client.send(TEXT, b"still there?")
            assert client.receive() == (TEXT, b"still there?")
            download.ended.set()
            assert loading.read_response().body == b"x" * 1000
            write(node, routes=[{"path": "/slow/**", "access": "denied"}, *ROUTES])
            reload(node)
            try:
                client.receive()
                raise AssertionError("a frame came through a denied route")
            except (ConnectionResetError, AssertionError) as ended:
                assert "frame" not in str(ended)


def tunnel_or_download(peer: Peer) -> None:
    head = peer.head()
    if b"upgrade: websocket" in head.lower():
        peer.send(ACCEPTED)
        while True:
            opcode, payload, masked = read_frame(peer.exactly)
            assert masked
            peer.send(frame(opcode, payload))
    whole = response(b"x" * 1000)
    peer.send(whole[:500])
    peer.ended.wait(HANGS_SECONDS)
    peer.send(whole[500:])


def test_a_reload_that_cannot_publish_its_addresses_is_in_use_all_the_same(node: Patgate, token: Token) -> None:
    published = node.data / "addresses.json"
    before = published.read_bytes()
    published.unlink()
    published.mkdir()
    try:
        write(node, routes=[{"path": "/unpublished", "access": "public", "upstream": "app"}, *ROUTES])
        reload(node)
        # The outcome is logged before the authority, which has the metric, is told.
        wait_until(lambda: metric(node, OK_METRIC) == 1, "the metric of a good reload")
        with node.connect() as connection:
            assert connection.request("GET", "/unpublished").status == 200
    finally:
        published.rmdir()
        published.write_bytes(before)


def test_a_reload_without_descriptors_is_refused_and_keeps_none(tmp_path: Path, backend: Recorder) -> None:
    config = {"upstreams": {"app": {"servers": [backend.url]}}, "roles": ROLES, "routes": ROUTES}
    with Patgate(tmp_path, config) as gateway:
        gateway.expects(REFUSAL)
        # Spares that are starting open and close descriptors.
        settle_spares(gateway)
        pid = gateway.process.pid
        usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        write(gateway, roles={**ROLES, "another": ["things:list"]})
        held = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
        free = [fd for fd in range(len(held) + 2) if fd not in held]
        try:
            # Room for one descriptor: the file can be read, but not every document can be built from it.
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[1], usual[1]))
            reload(gateway, expect=REFUSED)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
        assert {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()} == held
        reload(gateway)


def test_the_end_does_not_wait_for_workers_that_a_reload_starts_in_vain(tmp_path: Path, backend: Recorder) -> None:
    config = {"upstreams": {"app": {"servers": [backend.url]}}, "routes": ROUTES, "workers": 1}
    with Patgate(tmp_path, config) as gateway:
        gateway.expects("worker does not start yet", "a socket was removed and cannot be bound again")
        (gateway.data / "link.sock").rename(gateway.data / "moved.sock")
        (gateway.data / "link.sock").touch()  # otherwise the authority would bind another one
        write(gateway, workers=2)
        gateway.process.signal(signal.SIGHUP)
        gateway.all_workers()
        gateway.process.signal(signal.SIGTERM)
        assert gateway.process.wait() == 0
        assert count_of(gateway, "worker does not start yet") == 1
