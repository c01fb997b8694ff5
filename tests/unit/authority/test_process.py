"""The authority as a process: ready, killed, restarted, and ended by its lifeline or by a signal."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from pathlib import Path

from proxy.core.ipc.child_protocol import DATA_DIR_LOST
from proxy.core.ipc.clock import boottime_ns
from proxy.core.ipc.shared_memory import PageView
from proxy.settings.model import Settings
from tests.support.process import HANGS_SECONDS
from tests.unit.authority.child import AuthorityProcess, request


def _page(data_dir: Path) -> PageView:
    return PageView(memoryview(bytearray((data_dir / "page").read_bytes())))


def test_the_authority_becomes_ready_serves_its_sockets_and_exits_with_0_on_sigterm(
    settings: Settings, data_dir: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, AuthorityProcess(settings, listener=listener) as child:
        assert child.ready() == "ready\n"
        assert request(data_dir / "control.sock", "GET", "/livez") == (200, {"status": "ok"})
        port = listener.getsockname()[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANGS_SECONDS) as answer:
            assert b"patgate_epoch " in answer.read()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=HANGS_SECONDS)
            raise AssertionError("ready without a worker")
        except urllib.error.HTTPError as error:
            assert error.code == 503
            error.close()
        assert child.terminate() == 0, child.log.read_text()
    assert not (data_dir / "control.sock").exists()
    assert _page(data_dir).lease_until_ns == 0


def test_the_authority_ends_when_the_lifeline_closes(settings: Settings) -> None:
    with AuthorityProcess(settings) as child:
        child.ready()
        child.close_lifeline()
        assert child.process.wait(HANGS_SECONDS) == 0


def test_no_acknowledged_change_is_lost_by_kill_9_and_the_restart_is_quick(settings: Settings, data_dir: Path) -> None:
    sock = data_dir / "control.sock"
    with AuthorityProcess(settings) as first:
        first.ready()
        status, user = request(sock, "POST", "/api/v1/users", {"email": "ada@example.org", "role": "editor"})
        assert status == 201
        status, token = request(sock, "POST", "/api/v1/tokens", {"user": "ada@example.org", "name": "ci"})
        assert status == 201
        status, _ = request(sock, "POST", f"/api/v1/tokens/{token['prefix']}/revoke")
        assert status == 200
        first.kill()
        high = _page(data_dir).epoch
        with AuthorityProcess(settings) as second:
            second.ready()
            used = second.cpu_seconds()
            page = _page(data_dir)
            assert page.epoch >= high
            assert page.lease_until_ns > boottime_ns()
            assert request(sock, "GET", f"/api/v1/tokens/{token['id']}")[1]["status"] == "revoked"
            assert request(sock, "GET", f"/api/v1/users/{user['id']}")[1]["role"] == "editor"
            assert second.terminate() == 0
    assert used < 2.5, "a start must be far cheaper; this only keeps it from becoming dear unseen"


def test_a_failed_start_reports_why_in_one_line_and_exits_with_1(settings: Settings, data_dir: Path) -> None:
    (data_dir / "secret.key").write_text("short")
    os.chmod(data_dir / "secret.key", 0o600)
    with AuthorityProcess(settings) as child:
        line = child.ready()
        assert line.startswith("error: The secret key")
        assert line.count("\n") == 1
        assert child.process.wait(HANGS_SECONDS) == 1


def test_the_authority_ends_when_the_data_directory_is_no_longer_its_own(settings: Settings, data_dir: Path) -> None:
    quick = settings.model_copy(update={"lease": 0.2})
    with AuthorityProcess(quick) as child:
        assert child.ready() == "ready\n"
        (data_dir / "page").unlink()
        assert child.process.wait(HANGS_SECONDS) == DATA_DIR_LOST
        assert "taken away" in child.ready(), (
            "the reason is reported over the ready pipe if it is still read; else it is logged"
        )
