"""docs/threat-model.md §10: ``kill -9`` of a worker, of the authority, and of all processes, under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.errors import error_in
from tests.support.gateway import ControlClient, Patgate, Token
from tests.support.load import Load
from tests.support.operate import remove, settle_spares
from tests.support.process import accepts, alive, wait_until
from tests.support.rawhttp import ConnectionEnded, request_bytes
from tests.support.recorder import Recorder
from tests.support.sockets import serving_pid
from tests.support.tokens import forged, unknown_prefix

OWNER = "eve@example.org"
TARGET = "/v1/things/1"
RECOVERY_SECONDS = 1.0
AUTHORITY_SECONDS = 0.6
KILLS = 3  # the fastest recovery is that of patgate; the others include other work of the machine


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, backend: Recorder) -> Iterator[Patgate]:
    config = {
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"], "viewer": ["things:list"]},
        "routes": [
            {"path": "/v1/{entity}", "upstream": "app"},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
            {"path": "/public/**", "upstream": "app", "access": "public"},
        ],
    }
    with Patgate(tmp_path_factory.mktemp("faults"), config) as gateway:
        # A process that is killed before it is ready counts as a failed start.
        gateway.expects("child ended", "child did not start")
        gateway.add_user(OWNER, "editor")
        yield gateway


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(OWNER)


@pytest.mark.alone
def test_a_killed_worker_is_back_within_a_second_and_the_others_are_undisturbed(node: Patgate, token: Token) -> None:
    recovered = [kill_a_worker(node, token) for _ in range(KILLS)]
    assert min(recovered) < RECOVERY_SECONDS, recovered


def kill_a_worker(node: Patgate, token: Token) -> float:
    """Seconds from the kill to the first response of the new worker."""
    settle_spares(node)
    connections = node.connection_to_each_worker()
    (victim, dying), (survivor, staying) = connections.items()
    with (
        Load(lambda: staying, TARGET, token.bearer, reconnects=False) as undisturbed,
        Load(node.connect, TARGET, token.bearer) as newcomers,
    ):
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()

        def replacement() -> int | None:
            return next(iter({*node.worker_pids()} - {victim, survivor}), None)

        pid = wait_until(replacement, "the worker replaced")

        def served() -> float | None:
            connection = node.connect()
            with connection:
                ours = serving_pid(node.port, connection.local_port, [survivor, pid]) == pid
                if ours and connection.request("GET", TARGET, headers=token.bearer).status == 200:
                    return time.monotonic() - killed
            return None

        recovered = wait_until(served, "the new worker serving")
        undisturbed.wait_for_more(50)
        newcomers.wait_for_more(50)
    dying.close()
    assert undisturbed.statuses() == {200}
    assert max(answer.seconds for answer in undisturbed.answers) < RECOVERY_SECONDS
    assert newcomers.statuses() <= {200, None}, "a new connection was answered, and not with the verdict"
    return recovered


@pytest.mark.alone
def test_a_killed_authority_is_back_within_a_second(node: Patgate, token: Token) -> None:
    recovered = [kill_the_authority(node) for _ in range(KILLS)]
    assert min(recovered) < AUTHORITY_SECONDS, recovered


def kill_the_authority(node: Patgate) -> float:
    """Seconds from the kill to the first change that the new authority has acknowledged.

    It creates a user, not a token, whose hash is slow on purpose.
    """
    settle_spares(node)
    victim = node.authority_pid()
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()

    def changed() -> bool:
        try:
            with node.control_socket() as control:
                control.call("POST", "/users", {"email": f"after-{victim}@example.org", "role": "viewer"})
        except (OSError, ConnectionEnded):
            return False
        return True

    wait_until(changed, "a change made by the new authority")
    assert node.authority_pid() != victim
    return time.monotonic() - killed


@pytest.mark.alone
def test_valid_tokens_never_notice_that_the_authority_was_killed(node: Patgate, token: Token) -> None:
    """Leases are longer than the restart: workers decide from their caches, and no change is made meanwhile."""
    with ExitStack() as stack:
        loads = [
            stack.enter_context(Load(partial(lambda one: one, connection), TARGET, token.bearer, reconnects=False))
            for connection in node.connection_to_each_worker().values()
        ]
        workers = node.worker_pids()
        kill_the_authority(node)
        for load in loads:
            load.wait_for_more(50)
    assert node.worker_pids() == workers, "the workers lived through it"
    for load in loads:
        assert load.statuses() == {200}, f"{load.count(503)} of {len(load.answers)} answers were 503"


def test_an_authority_that_is_killed_under_lookups_is_no_defect_of_its_workers(node: Patgate) -> None:
    """Unknown tokens are looked up meanwhile; each is refused, and no exception is unhandled."""
    settle_spares(node)
    began = node.log.count("\n")
    over = threading.Event()
    statuses: set[int] = set()

    def ask() -> None:
        with node.connect() as connection:
            while not over.wait(0.01):
                bearers = [{"Authorization": f"Bearer {forged(unknown_prefix())}"} for _ in range(5)]
                connection.send(b"".join(request_bytes("GET", TARGET, headers=bearer) for bearer in bearers))
                statuses.update(connection.read_response().status for _ in bearers)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            wait_until(lambda: statuses, "the first answers")
            for _ in range(2):
                victim = node.authority_pid()
                os.kill(victim, signal.SIGKILL)
                wait_until(partial(_is_another, node, victim), "another authority")
        finally:
            over.set()
        for each in asking:
            each.result()
    assert statuses <= {401, 503}, statuses
    errors = [error_in(line) for line in node.log.splitlines()[began:]]
    assert {event for event in errors if event is not None} <= {"child ended", "child did not start"}
    node.wait_ready()  # for the next test


def _is_another(node: Patgate, victim: int) -> bool:
    return node.authority_pid() != victim


def test_a_token_made_before_the_authority_was_killed_is_revoked_by_the_next_one(node: Patgate) -> None:
    """The changes of the new authority reach the caches that the old one filled."""
    with node.control_socket() as control:
        token = control.create_token(OWNER, name="over two authorities")
    connections = node.connection_to_each_worker().values()
    for connection in connections:
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200
    victim = node.authority_pid()
    node.kill(victim)
    wait_until(lambda: accepts_control(node, victim) and node.is_ready(), "every worker linked to the new authority")
    with node.control_socket() as control:
        control.revoke(token)
    for connection in connections:
        assert connection.request("GET", TARGET, headers=token.bearer).status == 401
        connection.close()


@pytest.mark.alone
def test_a_worker_comes_back_for_public_routes_while_there_is_no_authority(node: Patgate, token: Token) -> None:
    """It waits only briefly for the authority's greeting; tokens are not accepted until the authority is back."""
    settle_spares(node)
    authority, (victim, survivor) = node.authority_pid(), node.all_workers()
    os.kill(authority, signal.SIGSTOP)
    try:
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()

        def served() -> float | None:
            pids = {*node.worker_pids()} - {victim}
            if pids == {survivor}:
                return None
            with node.connect() as connection:
                ours = serving_pid(node.port, connection.local_port, pids) != survivor
                if ours and connection.request("GET", "/public/x").status == 200:
                    return time.monotonic() - killed
            return None

        assert wait_until(served, "a public route served by the new worker") < 2 * RECOVERY_SECONDS
    finally:
        os.kill(authority, signal.SIGCONT)
    wait_until(node.is_ready, "every worker linked again")


def test_a_spare_is_neither_a_worker_nor_the_authority_and_its_death_harms_nobody(node: Patgate, token: Token) -> None:
    settle_spares(node)
    serving = [node.authority_pid(), *node.all_workers()]
    spares = node.spare_pids()
    assert not {*spares} & {*serving}
    assert f"patgate_workers {len(serving) - 1}" in node.control("GET", "/metrics").body.decode()
    for pid in spares:
        node.kill(pid)
    assert [node.authority_pid(), *node.all_workers()] == serving
    assert node.is_ready()
    kill_the_authority_without_a_spare(node)
    settle_spares(node)


def kill_the_authority_without_a_spare(node: Patgate) -> None:
    victim = node.authority_pid()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: accepts_control(node, victim), "the new authority")


def accepts_control(node: Patgate, old: int) -> bool:
    try:
        with node.control_socket() as control:
            control.call("GET", "/users")
    except (OSError, ConnectionEnded):
        return False
    return node.authority_pid() != old


class Changes:
    """A thread that makes one change after the other, and records the acknowledged ones."""

    def __init__(self, control: ControlClient, label: str) -> None:
        self._control = control
        self._label = label
        self._thread = threading.Thread(target=self._change, name="changes", daemon=True)
        self._stop = threading.Event()
        self.users: list[str] = []
        self.revoked: list[Token] = []
        self.rotated: list[tuple[Token, Token]] = []

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()  # after a failure of the test nothing else ends it
        self._thread.join()

    @property
    def count(self) -> int:
        return len(self.users) + len(self.revoked) + len(self.rotated)

    def _change(self) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                number += 1
                email = f"user-{self._label}-{number}@example.org"
                self._control.call("POST", "/users", {"email": email, "role": "editor"})
                self.users.append(email)
                token = self._control.create_token(email)
                fresh = self._control.rotate(token)
                self.rotated.append((token, fresh))
                if number % 2:
                    self._control.revoke(fresh)
                    self.revoked.append(fresh)
        except (OSError, ConnectionEnded):
            return  # the test has killed everything


@pytest.mark.parametrize("acknowledged", [1, 7, 20])
def test_killing_everything_loses_no_acknowledged_change(node: Patgate, token: Token, acknowledged: int) -> None:
    node.all_workers()
    with Load(node.connect, TARGET, token.bearer), node.control_socket() as control:
        with Changes(control, str(acknowledged)) as changes:
            wait_until(lambda: changes.count >= acknowledged, f"{acknowledged} changes")
            node.kill_everything()
        wait_until(lambda: not accepts(node.port), "every process gone")
    node.start()
    known = {user["email"] for user in listed(node)}
    assert set(changes.users) <= known
    revoked = {revoked.id for revoked in changes.revoked}
    with node.connect() as connection:
        assert connection.request("GET", TARGET, headers=token.bearer).status == 200
        for old, fresh in changes.rotated:
            assert connection.request("GET", TARGET, headers=old.bearer).status == 401
            if fresh.id not in revoked and (old, fresh) != changes.rotated[-1]:
                assert connection.request("GET", TARGET, headers=fresh.bearer).status == 200
        for dead in changes.revoked:
            assert connection.request("GET", TARGET, headers=dead.bearer).status == 401


def listed(node: Patgate) -> list[dict[str, str]]:
    """Every user, page by page."""
    with node.control_socket() as control:
        users: list[dict[str, str]] = []
        cursor = ""
        while True:
            page = control.call("GET", f"/users?limit=100{cursor}")
            users += page["items"]
            if not page.get("next_cursor"):
                return users
            cursor = f"&cursor={page['next_cursor']}"


def test_the_supervisor_ends_everything_on_sigterm_and_the_directory_is_free(node: Patgate) -> None:
    pids = [*node.all_workers(), node.authority_pid()]
    node.process.signal(signal.SIGTERM)
    assert node.process.wait() == 0
    for pid in pids:
        assert not alive(pid), pid
    node.stop()
    node.start()


def test_a_killed_supervisor_takes_its_children_with_it(node: Patgate) -> None:
    """Its end closes their lifeline, so that no process serves without a supervisor to restart it."""
    pids = [*node.all_workers(), node.authority_pid(), *node.spare_pids()]
    node.process.signal(signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids), "the children ended")
    node.stop()
    node.start()


@pytest.mark.parametrize("taken", ["removed", "moved away", "moved away, and the authority killed"])
def test_a_data_directory_taken_away_is_said_once_and_everything_ends(
    tmp_path: Path, backend: Recorder, taken: str
) -> None:
    config = {"upstreams": {"app": {"servers": [backend.url]}}, "roles": {"editor": ["things:*"]}, "lease": "1s"}
    with Patgate(tmp_path, config) as node:
        node.expects("process ends", "the data directory is no longer ours; the lease is not renewed")
        wait_until((node.data / "addresses.json").exists, "the supervisor's start complete")
        authority = node.authority_pid()
        if taken.endswith("killed"):
            os.kill(authority, signal.SIGSTOP)  # it would end by itself, before or after it is killed
        if taken == "removed":
            remove(node.data)
        else:
            node.data.rename(tmp_path / "away")
        if taken.endswith("killed"):
            os.kill(authority, signal.SIGKILL)
        assert node.process.wait() == 1
        lines = [line for line in node.log.splitlines() if not line.startswith("{")]
        assert len(lines) == 1 and str(node.data) in lines[0] and "removed or replaced" in lines[0], lines
        assert not [record for record in node.records() if record["event"] == "child restarted"]
        assert not node.data.exists()
