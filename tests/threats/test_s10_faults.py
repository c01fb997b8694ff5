"""Threat model §10: failing backends, a store that cannot write, clock steps. Kills: tests/faults."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support.backends import program
from tests.support.gateway import ControlClient, Patgate, Token, token_of
from tests.support.load import Load
from tests.support.process import HANGS_SECONDS, wait_until
from tests.support.rawhttp import Connection, ConnectionEnded, Response, request_bytes
from tests.support.recorder import Recorder
from tests.support.scripted import Peer, Plan, ScriptedBackend, echo, response

OWNER = "eve@example.org"
TARGET = "/v1/things/1"
DAY = 86_400
ROUTES = [
    {"path": "/public/**", "upstream": "app", "access": "public"},
    {"path": "/v1/{entity}", "upstream": "app"},
    {"path": "/v1/{entity}/{id}", "upstream": "app"},
]


# --- backends ---


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedBackend]:
    with ScriptedBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedBackend) -> Iterator[Patgate]:
    """A node that waits a second for its backend below ``/brief``, and longer than any busy machine takes elsewhere."""
    config = {
        "workers": 1,
        "upstreams": {
            "app": {"servers": [scripted.url], "response_timeout": f"{HANGS_SECONDS}s"},
            "brief": {"servers": [scripted.url], "response_timeout": "1s"},
        },
        "roles": {"editor": ["things:*"]},
        "routes": [*ROUTES, {"path": "/brief/**", "upstream": "brief", "access": "public"}],
    }
    with Patgate(tmp_path_factory.mktemp("backends"), config) as gateway:
        yield gateway


@pytest.fixture
def failing(scripted: ScriptedBackend) -> Iterator[ScriptedBackend]:
    scripted.use(echo)
    yield scripted
    scripted.use(echo)


def assert_recovered(node: Patgate) -> None:
    """Assert that the next requests get responses of the recovered backend."""
    with node.connect() as connection:
        answer = connection.request("GET", "/public/own")
        assert (answer.status, answer.body) == (200, b"/public/own")


def test_a_dead_backend_is_a_502_and_one_that_is_back_is_used_at_once(node: Patgate, failing: ScriptedBackend) -> None:
    assert_recovered(node)
    failing.die()
    try:
        with node.connect() as connection:
            for _ in range(3):
                answer = connection.request("GET", "/public/a")
                assert (answer.status, answer.json()["reason"]) == (502, "upstream_refused")
                answer = connection.request("POST", "/public/a", body=b"b")
                assert (answer.status, answer.json()["reason"]) == (502, "upstream_refused")
    finally:
        failing.revive()
    assert_recovered(node)


def breaking(beginning: bytes, *, reset: bool) -> Plan:
    """A backend that reads a request, sends ``beginning`` and closes; healthy from the third connection on.

    The third, because a request on an idle connection may be sent again once.
    """

    def plan(peer: Peer) -> None:
        if peer.number < 2:
            peer.head()
            if beginning:
                peer.send(beginning)
            if reset:
                peer.reset()
        else:
            echo(peer)

    return plan


BEGINNINGS = [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"]


@pytest.mark.parametrize("reset", [False, True], ids=["ends", "resets"])
@pytest.mark.parametrize("beginning", BEGINNINGS, ids=repr)
def test_a_backend_that_goes_before_its_head_is_whole_is_a_502(
    beginning: bytes, reset: bool, node: Patgate, failing: ScriptedBackend
) -> None:
    failing.use(breaking(beginning, reset=reset))
    for method in ("GET", "POST"):
        with node.connect() as connection:
            answer = connection.request(method, "/public/a")
            assert (answer.status, answer.json()["reason"]) == (502, "upstream_reset")
    assert_recovered(node)


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=repr)
def test_a_backend_that_is_silent_before_its_head_is_whole_is_a_504(
    beginning: bytes, node: Patgate, failing: ScriptedBackend
) -> None:
    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            if beginning:
                peer.send(beginning)
            peer.rest()
        echo(peer)

    failing.use(plan)
    with node.connect() as connection:
        answer = connection.request("GET", "/brief/a")
        assert (answer.status, answer.json()["reason"]) == (504, "upstream_timeout")
    assert failing.peers[0].ended.wait(HANGS_SECONDS)
    assert_recovered(node)


BODIES = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "a length of which nothing came": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    "half a chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n6",
    "half a last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
}


def assert_broken(node: Patgate, version: str = "1.1", target: str = "/public/a") -> None:
    """Assert that the response is truncated; if the end of the connection would complete it, it is reset."""
    with node.connect() as connection:
        connection.send(f"GET {target} HTTP/{version}\r\nHost: gateway\r\n\r\n".encode())
        if version == "1.1":
            with pytest.raises((ConnectionEnded, ConnectionResetError)):
                connection.read_response()
        else:
            with pytest.raises(ConnectionResetError):
                while connection.socket.recv(1 << 16):
                    pass
    assert_recovered(node)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("reset", [False, True], ids=["ends", "resets"])
@pytest.mark.parametrize("beginning", BODIES.values(), ids=BODIES)
def test_a_backend_that_goes_inside_its_body_breaks_the_connection(
    beginning: bytes, reset: bool, version: str, node: Patgate, failing: ScriptedBackend
) -> None:
    passed_on = threading.Event()

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(beginning)
            passed_on.wait(0.05)  # a reset may overtake the bytes before it; the client must notice in both cases
            if reset:
                peer.reset()
        else:
            echo(peer)

    failing.use(plan)
    assert_broken(node, version)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_reset_is_no_end_of_an_answer_that_ends_with_its_connection(
    version: str, node: Patgate, failing: ScriptedBackend
) -> None:
    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf")
            peer.waiting(0.1)
            peer.reset()
        else:
            echo(peer)

    failing.use(plan)
    assert_broken(node, version)


@pytest.mark.parametrize("beginning", [BODIES["a length"], BODIES["chunks"]], ids=["a length", "chunks"])
def test_a_backend_that_falls_silent_inside_its_body_breaks_the_connection(
    beginning: bytes, node: Patgate, failing: ScriptedBackend
) -> None:
    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.send(beginning)
            peer.rest()
        else:
            echo(peer)

    failing.use(plan)
    assert_broken(node, target="/brief/a")
    assert failing.peers[0].ended.wait(HANGS_SECONDS)


def test_a_backend_that_goes_inside_the_requests_body_is_a_502(node: Patgate, failing: ScriptedBackend) -> None:
    """The rest of the body is not read as a request, and the request is not sent again."""

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            peer.exactly(10)
            peer.reset()
        else:
            echo(peer)

    failing.use(plan)
    with node.connect() as connection:
        connection.send(b"PUT /public/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 70\r\n\r\n" + b"b" * 10)
        answer = connection.read_response("PUT")
        assert (answer.status, answer.json()["reason"]) == (502, "upstream_reset")
        assert not answer.keeps_alive
        connection.send(request_bytes("GET", "/public/smuggled"))
        assert connection.ended()
    assert_recovered(node)
    assert failing.targets == ["/public/a", "/public/own"]


def test_one_slow_answer_delays_no_other(node: Patgate, failing: ScriptedBackend) -> None:
    """One worker, one upstream: other requests are answered while one waits for its backend."""
    release = threading.Event()

    def plan(peer: Peer) -> None:
        if peer.number == 0:
            peer.head()
            release.wait(HANGS_SECONDS)
            peer.send(response(b"late"))
        echo(peer)

    failing.use(plan)
    with node.connect() as slow:
        slow.send(request_bytes("GET", "/public/slow"))
        wait_until(lambda: failing.targets, "the slow request at the backend")
        try:
            for _ in range(20):
                assert_recovered(node)
        finally:
            release.set()
        assert slow.read_response().body == b"late"


# --- the store ---


@pytest.fixture(scope="module")
def storing(tmp_path_factory: pytest.TempPathFactory, backend: Recorder) -> Iterator[Patgate]:
    """A node with leases much shorter than the faults of the tests."""
    config = {
        "lease": "2s",
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"], "viewer": ["things:list"]},
        "routes": ROUTES,
    }
    with Patgate(tmp_path_factory.mktemp("store"), config) as gateway:
        gateway.expects("events and usage of requests cannot be written yet")
        gateway.add_user(OWNER, "editor")
        yield gateway


@contextmanager
def no_room(node: Patgate) -> Iterator[None]:
    """Limit the authority's file size: ``write`` fails with EFBIG (Python ignores SIGXFSZ), as on a full disk."""
    pid = node.authority_pid()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    written = max(file.stat().st_size for file in node.data.iterdir() if file.name.endswith("-wal"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (written, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def assert_refused(control: ControlClient, method: str, path: str, document: object = None) -> None:
    with pytest.raises(AssertionError, match=f"{method} {path}: 503"):
        control.call(method, path, document)


@pytest.mark.alone
def test_with_a_full_disk_changes_are_refused_and_existing_tokens_keep_working(
    storing: Patgate, recorder: Recorder
) -> None:
    """No restart is needed when there is room again."""
    used, unused, kept = (storing.token(OWNER, name=name) for name in ("used", "unused", "kept"))
    before = (storing.authority_pid(), storing.all_workers())
    with storing.control_socket() as control, Load(storing.connect, TARGET, used.bearer, pause=0.02) as load:
        with no_room(storing):
            for number in range(5):
                assert_refused(control, "POST", "/users", {"email": f"u{number}@example.org", "role": "editor"})
                assert_refused(control, "POST", "/tokens", {"user": OWNER, "name": "new"})
                assert_refused(control, "POST", f"/tokens/{kept.id}/revoke")
                assert_refused(control, "POST", f"/users/{OWNER}/role", {"role": "viewer"})
            for connection in storing.connection_to_each_worker().values():
                with connection:
                    for token in (unused, kept):
                        assert connection.request("GET", TARGET, headers=token.bearer).status == 200
            began = load.answers[-1].began
            wait_until(lambda: load.answers[-1].began > began + 5, "two and a half leases")
        control.call("POST", "/users", {"email": "after@example.org", "role": "editor"})
        control.revoke(kept)
        assert {user["email"] for user in control.call("GET", "/users")["items"]} == {OWNER, "after@example.org"}
        assert control.create_token("after@example.org").value
    assert load.statuses() == {200}
    for connection in storing.connection_to_each_worker().values():
        with connection:
            assert connection.request("GET", TARGET, headers=kept.bearer).status == 401
            assert connection.request("GET", TARGET, headers=used.bearer).status == 200
    assert (storing.authority_pid(), storing.all_workers()) == before, "nothing was restarted"


# --- clocks ---


class WallClock:
    """The wall clock of all processes started with ``environ`` (libfaketime); monotonic time is real."""

    def __init__(self, directory: Path) -> None:
        found = subprocess.run(
            [program("faketime"), "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True, check=True
        )
        self._file = directory / "clock"
        self.step(0)
        self.environ = {
            "LD_PRELOAD": found.stdout.strip(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: int) -> None:
        """Set the clock's offset from the real time; every process sees it within a second."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._file)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    return WallClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory, backend: Recorder, clock: WallClock) -> Iterator[Patgate]:
    config = {
        "lease": "10s",  # much less than the clock's step, and more than any delay of the authority on a busy machine
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": ROUTES,
    }
    with Patgate(tmp_path_factory.mktemp("timed"), config, environ=clock.environ) as gateway:
        gateway.add_user(OWNER, "editor")
        yield gateway


def expiring(control: ControlClient, seconds: int) -> Token:
    document = {"user": OWNER, "name": "expires", "expires": seconds}
    return token_of(control.call("POST", "/tokens", document))


def test_when_the_clock_steps_expiry_follows_it_and_leases_do_not(
    timed: Patgate, clock: WallClock, recorder: Recorder
) -> None:
    lasting = timed.token(OWNER)
    with timed.control_socket() as control:
        brief = expiring(control, DAY // 2)
        connections = list(timed.connection_to_each_worker().values())

        def statuses(token: Token) -> set[int]:
            return {connection.request("GET", TARGET, headers=token.bearer).status for connection in connections}

        def followed(status: int) -> bool:
            return statuses(brief) == {status}

        with Load(timed.connect, TARGET, lasting.bearer, pause=0.02) as load:
            assert statuses(brief) == {200}
            for step, status in ((DAY, 401), (-DAY, 200)):
                clock.step(step)
                wait_until(partial(followed, status), f"{status} with the clock at {step:+d} s")
                revoked = control.create_token(OWNER, name=f"made at {step:+d} s")
                assert statuses(revoked) == {200}
                control.revoke(revoked)
                assert statuses(revoked) == {401}
        assert load.statuses() == {200}, "a step of the wall clock ended a lease"
        for connection in connections:
            connection.close()


# --- a frozen authority ---

ASKED = {"X-Original-Method": "GET", "X-Original-URI": TARGET}
WITHIN_SECONDS = 1.0
MARGIN_SECONDS = 1.5
"""Tolerance for a loaded machine; without its deadline, forward auth would wait for 5 seconds and more."""


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Patgate]:
    config = {
        "workers": 1,
        "listen": {"forward_auth": {"trusted": ["127.0.0.1/32"]}},
        "upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}},
        "roles": {"editor": ["things:*"]},
        "routes": ROUTES,
    }
    with Patgate(tmp_path, config) as gateway:
        gateway.add_user(OWNER, "editor")
        yield gateway


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ask(node: Patgate, token: Token) -> tuple[Response, float]:
    """The response of forward auth, and its time in seconds."""
    begun = time.monotonic()
    with Connection(node.forward_auth_port, seconds=20) as connection:
        answer = connection.request("GET", "/nginx", headers={**ASKED, **token.bearer})
    return answer, time.monotonic() - begun


def unavailable(answer: Response) -> bool:
    """Whether an answer to nginx says that patgate cannot decide: 403, because nginx understands no 503."""
    if answer.status == 200:
        return False
    problem = answer.json()
    return (answer.status, problem["status"], problem["reason"]) == (403, 503, "authority_unavailable")


@pytest.mark.alone
def test_a_frozen_authority_keeps_forward_auth_for_a_second_at_most(asked: Patgate) -> None:
    """Cached tokens are decided while the lease runs; other tokens, and all tokens after it, get 503."""
    cached, cold = asked.token(OWNER, name="cached"), asked.token(OWNER, name="cold")
    assert ask(asked, cached)[0].status == 200
    with frozen(asked.authority_pid()):
        begun = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: ask(asked, cold), range(20)))
        for answer, took in answers:
            assert unavailable(answer)
            assert [int(value) >= 1 for value in answer.all("retry-after")] == [True]
            assert took < WITHIN_SECONDS + MARGIN_SECONDS
        answer, _ = ask(asked, cached)
        # After a missed renewal, at least four of the lease's five seconds are left.
        assert answer.status == 200 or time.monotonic() - begun > 3.5
        wait_until(lambda: unavailable(ask(asked, cached)[0]), "the lease run out", seconds=10)
        for token in (cached, cold):
            answer, took = ask(asked, token)
            assert unavailable(answer)
            assert took < WITHIN_SECONDS / 2 + MARGIN_SECONDS
    wait_until(lambda: ask(asked, cold)[0].status == 200, "decisions again")
    assert ask(asked, cached)[0].status == 200
