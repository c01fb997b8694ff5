"""Threat model §8: the cost of a flood, a slow peer or a large body is bounded, and others are not disturbed.

``make bench`` measures rates and latencies, ``make soak`` runs for hours with gigabytes; the bounds here hold on any
machine.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import quotas
from tests.support.gateway import Patgate, Token
from tests.support.load import Load
from tests.support.process import HANGS_SECONDS, LOOPBACK, wait_until
from tests.support.rawhttp import Connection, request_bytes
from tests.support.scripted import Peer, ScriptedBackend, response
from tests.support.tokens import forged, unknown_prefix

OWNER = "eve@example.org"
TARGET = "/v1/things/1"
MEBIBYTE = 1 << 20
DEADLINE = 1.0
PATIENCE = DEADLINE + 4.0  # half a second for the sweep, and a tolerance for a busy machine
POOLED = 64  # the default of ``upstreams.<name>.max_idle``
BIG = 128 * MEBIBYTE  # eight times the memory that the gateway may use for it; ``make bench`` has a gigabyte each way
ABSENT = 300


def backend_plan(peer: Peer) -> None:
    """Discards request bodies; the response of /large/ is larger than any buffer."""
    while True:
        head = peer.head()
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
        if length:
            peer.discard(int(length[1]))
        elif b"\r\nTransfer-Encoding: chunked\r\n" in head:
            peer.rest()
        target = head.split(b" ", 2)[1]
        large = re.fullmatch(rb"/(?:public|brief)/large/(\d+)", target)
        if large:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % int(large[1]))
            block = bytes(MEBIBYTE)
            for _ in range(int(large[1]) // MEBIBYTE):
                peer.send(block)
        else:
            peer.send(response())


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedBackend]:
    with ScriptedBackend() as backend:
        backend.use(backend_plan)
        yield backend


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, scripted: ScriptedBackend) -> Iterator[Patgate]:
    """A node with one worker, whose metrics and memory are thus the node's, deadlines of a second, and small caches.

    Only below ``/brief`` is an answer that pauses cut off after a second: elsewhere the backend may be busy.
    """
    config = {
        "workers": 1,
        "upstreams": {
            "app": {"servers": [scripted.url], "response_timeout": f"{HANGS_SECONDS}s"},
            "brief": {"servers": [scripted.url], "response_timeout": f"{DEADLINE}s"},
        },
        "roles": {"editor": ["things:*"]},
        "routes": [
            {"path": "/public/**", "upstream": "app", "access": "public"},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
            {"path": "/mark", "upstream": "app", "access": "public"},
            {"path": "/brief/**", "upstream": "brief", "access": "public"},
        ],
        "timeouts": {"request_head": f"{DEADLINE}s", "request_body_idle": f"{DEADLINE}s"},
        "cache": {"entries": 100, "absent": ABSENT},
    }
    with Patgate(tmp_path_factory.mktemp("exhaustion"), config) as gateway:
        gateway.add_user(OWNER, "editor")
        yield gateway


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    """A token in the worker's cache."""
    valid = node.token(OWNER)
    with node.connect() as connection:
        assert connection.request("GET", TARGET, headers=valid.bearer).status == 200
    return valid


# --- measuring ---


def metric(node: Patgate, name: str, labels: Mapping[str, str] | None = None) -> float:
    """The sum of all series of a metric with these labels."""
    wanted = set((labels or {}).items())
    page = node.control("GET", "/metrics").body.decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name and wanted <= set(sample.labels.items()))


MARKS = count(1)


def settled(node: Patgate, name: str) -> float:
    """The metric including everything before this call.

    A worker reports all its counts at once: if a new request is in the report, so are all earlier ones.
    """
    made = next(MARKS)  # also if this one fails: the next test counts on
    with node.connect() as connection:
        assert connection.request("GET", "/mark").status == 200
    mark = {"route": "/mark"}
    wait_until(lambda: metric(node, "patgate_requests_total", mark) == made, "the worker's report")
    return metric(node, name)


def memory(pid: int, field: str) -> int:
    """Resident memory in bytes: now (VmRSS), or the peak since ``forget_peak`` (VmHWM)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    """proc(5): writing 5 to clear_refs resets the peak of the resident memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def wrong_secrets(token: Token, number: int) -> list[str]:
    return [forged(token.prefix) for _ in range(number)]


def unknown_tokens(number: int) -> list[str]:
    return [forged(unknown_prefix()) for _ in range(number)]


def flood(node: Patgate, tokens: Sequence[str], *, clients: int = 8) -> None:
    """Send a request with each token, pipelined on ``clients`` connections; all must be refused with 401."""
    with ThreadPoolExecutor(clients) as pool:
        shares = [tokens[number::clients] for number in range(clients)]
        assert set().union(*pool.map(partial(_ask_with_each, node), shares)) == {401}


def _ask_with_each(node: Patgate, tokens: Sequence[str]) -> set[int]:
    statuses = set()
    with node.connect() as connection:
        for at in range(0, len(tokens), 100):
            block = tokens[at : at + 100]
            connection.send(b"".join(request_bytes("GET", TARGET, headers=_bearer(token)) for token in block))
            statuses |= {connection.read_response().status for _ in block}
    return statuses


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- floods ---


def test_wrong_secrets_of_a_known_prefix_run_no_argon2_and_ask_nobody(node: Patgate, token: Token) -> None:
    flood(node, wrong_secrets(token, 100))
    argon2, asked = settled(node, "patgate_argon2_total"), settled(node, "patgate_resolves_total")
    worker = node.worker_pids()[0]
    before = memory(worker, "VmRSS")
    with Load(node.connect, TARGET, token.bearer, reconnects=False) as valid:
        flood(node, wrong_secrets(token, 10_000))
        valid.wait_for_more(20)
    assert valid.statuses() == {200}
    assert settled(node, "patgate_argon2_total") == argon2
    assert settled(node, "patgate_resolves_total") == asked, "a secret that is known to be wrong was looked up"
    assert memory(worker, "VmRSS") - before < 8 * MEBIBYTE


def test_random_tokens_run_no_argon2_keep_memory_flat_and_push_no_valid_token_out(node: Patgate, token: Token) -> None:
    flood(node, unknown_tokens(3 * ABSENT))
    argon2 = settled(node, "patgate_argon2_total")
    pids = [node.worker_pids()[0], node.authority_pid()]
    before = [memory(pid, "VmRSS") for pid in pids]
    with Load(node.connect, TARGET, token.bearer, reconnects=False) as valid:
        flood(node, unknown_tokens(10 * ABSENT))
        valid.wait_for_more(20)
    assert valid.statuses() == {200}
    assert settled(node, "patgate_argon2_total") == argon2
    assert [memory(pid, "VmRSS") - was < 8 * MEBIBYTE for pid, was in zip(pids, before, strict=True)] == [True, True]
    misses = settled(node, "patgate_cache_misses_total")
    with node.connect() as connection:
        for _ in range(20):
            assert connection.request("GET", TARGET, headers=token.bearer).status == 200
    assert settled(node, "patgate_cache_misses_total") == misses, "the flood pushed a valid token out of the cache"


def test_mistyped_tokens_are_refused_without_a_look_up(node: Patgate, token: Token) -> None:
    asked = settled(node, "patgate_resolves_total")
    last = "1" if token.value[-1] == "0" else "0"
    flood(node, [token.value[:-1] + last, token.value + "x", token.value[:-1], "acme_pat_x", "x" * 4000] * 200)
    assert settled(node, "patgate_resolves_total") == asked


@pytest.mark.parametrize(
    "malformed",
    [
        b"GET /public/" + b"\xff" * 200 + b" HTTP/1.1\r\nHost: gateway\r\n\r\n",
        b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01" + b"\0" * 200,
    ],
    ids=["targets", "lengths", "TLS"],
)
def test_a_flood_of_malformed_requests_writes_a_bounded_log(malformed: bytes, node: Patgate, token: Token) -> None:
    """At most a megabyte a minute, of which a quarter at once; the number of omitted lines is logged."""
    log = node.directory / "patgate.log"
    size, began = log.stat().st_size, time.monotonic()

    def refused() -> None:
        with node.connect() as connection:
            assert connection.exchange(malformed, method="GET").status == 400

    with Load(node.connect, TARGET, token.bearer, reconnects=False) as valid:
        quotas.flood(node, refused, at_once=1500)
        valid.wait_for_more(20)
    assert valid.statuses() == {200}
    minutes = (time.monotonic() - began) / 60
    assert log.stat().st_size - size <= 250_000 + 750_000 * minutes


# --- slow peers ---


def gone(connections: Iterable[Connection]) -> bool:
    """Whether the gateway has closed or reset every connection; bytes that it sent before may still be readable."""
    poll = select.poll()
    sockets = [connection.socket for connection in connections]
    for each in sockets:
        poll.register(each, select.POLLRDHUP)
    return len(poll.poll(0)) == len(sockets)


def opened(stack: ExitStack, node: Patgate, number: int, data: bytes) -> list[Connection]:
    connections = [stack.enter_context(node.connect()) for _ in range(number)]
    for connection in connections:
        connection.send(data)
    return connections


def assert_undisturbed(load: Load) -> None:
    assert load.statuses() == {200}
    assert max(answer.seconds for answer in load.answers) < DEADLINE


@pytest.mark.alone
@pytest.mark.parametrize("trickle", [False, True], ids=["silent", "trickling"])
def test_slow_heads_are_gone_within_their_deadline(trickle: bool, node: Patgate, token: Token) -> None:
    """A byte now and then does not extend the deadline."""
    with Load(node.connect, TARGET, token.bearer, reconnects=False) as others, ExitStack() as stack:
        slow = opened(stack, node, 200, b"GET /public/a HTTP/1.1\r\nHost: gateway\r\nX: ")
        began = time.monotonic()

        def ended() -> bool:
            if trickle:
                for connection in slow:
                    with suppress(OSError):
                        connection.send(b"x")
                time.sleep(0.05)  # the interval of the trickle
            return gone(slow)

        wait_until(ended, "200 slow heads gone", seconds=PATIENCE)
        assert time.monotonic() - began > DEADLINE * 0.9
        others.wait_for_more(20)
    assert_undisturbed(others)


@pytest.mark.alone
@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"], ids=bytes.decode)
def test_slow_bodies_are_gone_within_their_deadline(
    framing: bytes, node: Patgate, token: Token, scripted: ScriptedBackend
) -> None:
    """Their connections to the backend are closed as well."""
    beginning = b"3e8\r\n" + b"b" * 10 if b"chunked" in framing else b"b" * 10
    head = b"POST /public/slow HTTP/1.1\r\nHost: gateway\r\n" + framing + b"\r\n\r\n"
    with Load(node.connect, TARGET, token.bearer, reconnects=False) as others, ExitStack() as stack:
        slow = opened(stack, node, 50, head + beginning)
        wait_until(lambda: gone(slow), "50 slow bodies gone", seconds=PATIENCE)
        assert b" 408 " in slow[0].read_to_end()[:20]
        others.wait_for_more(20)
    assert_undisturbed(others)
    waiting = [peer for peer in scripted.peers if "/public/slow" in peer.targets]
    assert len(waiting) >= 50
    wait_until(lambda: all(peer.ended.is_set() for peer in waiting), "the backend's connections gone")


@pytest.mark.alone
def test_bodies_that_trickle_are_gone_though_they_never_pause(node: Patgate, token: Token) -> None:
    """A byte now and then does not extend the deadline: a body must keep a minimum average rate."""
    head = b"POST /public/slow HTTP/1.1\r\nHost: gateway\r\nContent-Length: 100000\r\n\r\n"
    with Load(node.connect, TARGET, token.bearer, reconnects=False) as others, ExitStack() as stack:
        slow = opened(stack, node, 50, head)

        def ended() -> bool:
            for connection in slow:
                with suppress(OSError):
                    connection.send(b"x")
            time.sleep(0.05)  # the interval of the trickle
            return gone(slow)

        wait_until(ended, "50 trickling bodies gone", seconds=20)
        others.wait_for_more(20)
    assert others.statuses() == {200}


@pytest.mark.alone
def test_slow_readers_are_gone_within_their_deadline_and_hold_little_memory(node: Patgate, token: Token) -> None:
    worker = node.worker_pids()[0]
    forget_peak(worker)
    before = memory(worker, "VmRSS")
    with Load(node.connect, TARGET, token.bearer, reconnects=False) as others, ExitStack() as stack:
        slow = []
        for _ in range(20):
            narrow = socket.socket()
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            narrow.connect((LOOPBACK, node.port))
            slow.append(stack.enter_context(Connection(sock=narrow)))
            slow[-1].send(request_bytes("GET", f"/brief/large/{16 * MEBIBYTE}"))
        wait_until(lambda: gone(slow), "20 slow readers gone", seconds=PATIENCE)
        others.wait_for_more(20)
    assert_undisturbed(others)
    assert memory(worker, "VmHWM") - before < 20 * MEBIBYTE, "more than a mebibyte for each"


@pytest.mark.alone
def test_silent_connections_are_gone_within_the_deadline(node: Patgate) -> None:
    with ExitStack() as stack:
        silent = opened(stack, node, 200, b"")
        wait_until(lambda: gone(silent), "200 silent connections gone", seconds=PATIENCE)


def test_clients_that_reset_leave_nothing_behind(node: Patgate, token: Token) -> None:
    worker = node.worker_pids()[0]
    descriptors = Path(f"/proc/{worker}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(200):
        with node.connect() as connection:
            connection.send(request_bytes("GET", f"/public/large/{MEBIBYTE}"))
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with node.connect() as connection:  # accepted after all of them
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200
    # Connections to the backend opened for a disconnected client stay in the pool for the next one.
    most = before + POOLED + 20
    wait_until(lambda: len(list(descriptors.iterdir())) <= most, "the descriptors given back")


# --- big bodies ---


@pytest.mark.alone  # a pause of a second ends the body
def test_a_big_upload_streams_in_constant_memory(node: Patgate) -> None:
    worker = node.worker_pids()[0]
    forget_peak(worker)
    before = memory(worker, "VmRSS")
    block = bytes(MEBIBYTE)
    with node.connect() as connection:
        connection.send(f"PUT /public/big HTTP/1.1\r\nHost: gateway\r\nContent-Length: {BIG}\r\n\r\n".encode())
        for _ in range(BIG // MEBIBYTE):
            connection.send(block)
        assert connection.read_response("PUT").status == 200
    assert memory(worker, "VmHWM") - before < 16 * MEBIBYTE


def test_a_big_download_streams_in_constant_memory(node: Patgate) -> None:
    worker = node.worker_pids()[0]
    forget_peak(worker)
    before = memory(worker, "VmRSS")
    received = 0
    with node.connect() as connection:
        connection.send(request_bytes("GET", f"/public/large/{BIG}"))
        while received < BIG:
            data = connection.socket.recv(MEBIBYTE)
            assert data, "the answer broke off"
            received += len(data)
    assert memory(worker, "VmHWM") - before < 16 * MEBIBYTE
