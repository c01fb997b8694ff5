"""Threat model §10: under a running gateway the disk fails, or the store's files are removed."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.disk import Calls, FailingDisk
from tests.support.gateway import ControlClient, Patgate, Token
from tests.support.operate import remove
from tests.support.process import wait_until
from tests.support.recorder import Recorder

OWNER, OTHER = "eve@example.org", "mallory@example.org"
TARGET = "/v1/things/1"


def config(backend: Recorder) -> dict[str, object]:
    return {
        "upstreams": {"app": {"servers": [backend.url]}},
        "roles": {"editor": ["things:*"], "viewer": ["things:list"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }


@pytest.fixture
def disk(tmp_path: Path) -> FailingDisk:
    return FailingDisk(tmp_path)


@pytest.fixture
def node(tmp_path: Path, backend: Recorder, disk: FailingDisk) -> Iterator[Patgate]:
    with Patgate(tmp_path / "node", config(backend), environ=disk.environ) as gateway:
        for user in (OWNER, OTHER):
            gateway.add_user(user, "editor")
        # Which operation the failure hits depends on timing: the check of the store, or data of earlier requests.
        gateway.expects(
            "the outcome of a change is unknown, and what it touched is refused",
            "events and usage of requests cannot be written yet",
        )
        yield gateway


def refusal(control: ControlClient, path: str) -> tuple[int, str]:
    """Status and reason of a change that is not acknowledged."""
    with pytest.raises(AssertionError) as raised:
        control.call("POST", path)
    status = re.search(r": (\d{3}) b'", str(raised.value))
    reason = re.search(r'"reason": "(\w+)"', str(raised.value))
    assert status and reason, raised.value
    return int(status[1]), reason[1]


def uses(control: ControlClient, token: Token) -> int:
    """How many uses of the token are in the store; a worker reports them some time after the answer."""
    return int(control.call("GET", f"/tokens/{token.id}")["use_count"])


def statuses(node: Patgate, token: Token) -> set[int]:
    """The status from each worker."""
    found = set()
    for connection in node.connection_to_each_worker().values():
        with connection:
            found.add(connection.request("GET", TARGET, headers=token.bearer).status)
    return found


def test_what_a_failed_sync_refused_is_not_in_force_after_a_crash(node: Patgate, disk: FailingDisk) -> None:
    token = node.token(OTHER)
    with node.control_socket() as control:
        control.suspend(OTHER)
        disk.fail(Calls.SYNC, times=1)
        assert refusal(control, f"/users/{OTHER}/resume") == (503, "store_unavailable")
        assert disk.failed == 1
        assert statuses(node, token) == {401}
    node.kill_everything()
    node.stop()
    node.start()
    assert statuses(node, token) == {401}


def test_a_revocation_whose_outcome_is_unknown_is_refused_at_once_and_ends_when_the_disk_is_well(
    node: Patgate, disk: FailingDisk
) -> None:
    """Other tokens keep working, no other change is accepted, and no restart is needed."""
    token, kept = node.token(OWNER), node.token(OWNER)
    assert statuses(node, token) == statuses(node, kept) == {200}
    with node.control_socket() as control:
        # Else the first write that fails may be the one with these uses.
        wait_until(lambda: uses(control, token) == uses(control, kept) == 2, "the uses written", process=node.process)
        disk.fail(Calls.SYNC)
        assert refusal(control, f"/tokens/{token.id}/revoke") == (503, "outcome_unknown")
        assert statuses(node, token) == {503}
        assert b"\npatgate_store_in_doubt 1" in node.control("GET", "/metrics").body
        assert statuses(node, kept) == {200}
        assert refusal(control, f"/tokens/{kept.id}/revoke") == (503, "store_unavailable")
        assert statuses(node, kept) == {200}
        disk.work()
        wait_until(lambda: statuses(node, token) == {200}, "the token is not revoked", process=node.process)
        assert b"\npatgate_store_in_doubt 0" in node.control("GET", "/metrics").body
        events = control.call("GET", "/audit?action=account.store.")["items"]
        assert len(events) == 2, events
        control.revoke(token)
        assert statuses(node, token) == {401}
        assert statuses(node, kept) == {200}


def test_a_node_killed_while_an_outcome_is_unknown_finds_it_out_at_its_start(node: Patgate, disk: FailingDisk) -> None:
    token, kept = node.token(OWNER), node.token(OWNER)
    with node.control_socket() as control:
        disk.fail(Calls.SYNC)
        assert refusal(control, f"/tokens/{token.id}/revoke") == (503, "outcome_unknown")
    node.kill_everything()
    node.stop()
    disk.work()
    node.start()
    assert statuses(node, token) in ({200}, {401})
    assert statuses(node, kept) == {200}
    with node.control_socket() as control:
        control.revoke(token)
    assert statuses(node, token) == {401}


def test_an_authority_killed_while_an_outcome_is_unknown_is_replaced(node: Patgate, disk: FailingDisk) -> None:
    token, kept = node.token(OWNER), node.token(OWNER)
    with node.control_socket() as control:
        disk.fail(Calls.SYNC)
        assert refusal(control, f"/tokens/{token.id}/revoke") == (503, "outcome_unknown")
    disk.work()
    old = node.authority_pid()
    node.expects("child ended")
    node.kill(old)
    wait_until(lambda: node.authority_pid() != old and node.is_ready(), "another authority", process=node.process)
    wait_until(lambda: statuses(node, kept) == {200}, "the other token works", process=node.process)
    wait_until(lambda: statuses(node, token) in ({200}, {401}), "the outcome is known", process=node.process)
    with node.control_socket() as control:
        control.revoke(token)
    assert statuses(node, token) == {401}


def _database(data: Path) -> Path:
    return data / "patgate.db"


def _remove_all(data: Path) -> None:
    for file in data.glob("patgate.db*"):
        file.unlink()


def _remove_log(data: Path) -> None:
    (data / "patgate.db-wal").unlink()


def _replace(data: Path) -> None:
    shutil.copy(_database(data), data / "copy")
    (data / "copy").replace(_database(data))


def _replace_log(data: Path) -> None:
    shutil.copy(data / "patgate.db-wal", data / "copy")
    (data / "copy").replace(data / "patgate.db-wal")


def _cut_short(data: Path) -> None:
    os.truncate(_database(data), 4096)


def _cut_log_short(data: Path) -> None:
    os.truncate(data / "patgate.db-wal", 0)


def _move(data: Path) -> None:
    data.rename(data.with_name("elsewhere"))


def _remove_directory(data: Path) -> None:
    remove(data)


TAKEN: list[Callable[[Path], None]] = [
    _remove_all,
    _remove_log,
    _replace,
    _replace_log,
    _cut_short,
    _cut_log_short,
    _move,
    _remove_directory,
]


@pytest.mark.parametrize("take", TAKEN, ids=lambda take: take.__name__.strip("_"))
def test_nothing_is_acknowledged_in_files_that_were_taken_away(
    tmp_path: Path, backend: Recorder, take: Callable[[Path], None]
) -> None:
    """All processes end, because it is unknown which tokens are valid."""
    # With such a long lease only the change itself notices in time.
    with Patgate(tmp_path / "node", {**config(backend), "workers": 1, "lease": "60s"}) as node:
        node.expects("process ends", "the data directory is no longer ours; the lease is not renewed")
        wait_until((node.data / "addresses.json").exists, "the supervisor's start complete")
        node.add_user(OWNER, "editor")
        token = node.token(OWNER)
        with node.control_socket() as control:
            take(node.data)
            assert refusal(control, f"/tokens/{token.id}/revoke") == (503, "store_lost")
        assert node.process.wait() == 1
        said = [line for line in node.log.splitlines() if not line.startswith("{")]
        assert len(said) == 1 and str(node.data) in said[0] and "removed or replaced" in said[0], said


def _accepts(path: Path) -> bool:
    """Whether the socket takes connections: its path exists a moment earlier."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(os.fspath(path)) == 0


@pytest.mark.parametrize("name", ["control.sock", "link.sock"])
def test_a_socket_that_was_removed_is_bound_again_and_what_is_connected_stays(node: Patgate, name: str) -> None:
    token = node.token(OWNER)
    with node.control_socket() as before:
        for number in range(2):
            (node.data / name).unlink()
            wait_until(partial(_accepts, node.data / name), f"{name} is back", process=node.process)
            assert (node.data / name).stat().st_mode & 0o777 == 0o600
            if number == 0:
                assert before.call("GET", "/users")["items"], "the connection of before goes on"
        with node.control_socket() as control:
            assert control.call("GET", "/users")["items"]
    node.expects("child ended")
    node.kill(node.all_workers()[0])
    # The authority may still count the killed one: the new one has linked when it knows the token.
    wait_until(lambda: statuses(node, token) == {200}, "a new worker has linked", process=node.process)
    assert node.is_ready()
