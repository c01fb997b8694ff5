"""``patgate serve`` with real processes: start, replacement, stop, and failed starts with one sentence."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.process import HANGS_SECONDS
from tests.unit.cli.running import Desk, environment, only_sentence


def until(condition: Callable[[], bool], seconds: float = HANGS_SECONDS) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def serving(desk: Desk, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A gateway that accepts requests, and is killed at the end of the block."""
    (desk.data / "addresses.json").unlink(missing_ok=True)  # a killed gateway leaves it
    with (desk.directory / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "--json", "--config", str(desk.config), *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(),
        )
        with process:
            try:
                addresses = desk.data / "addresses.json"
                until(lambda: addresses.exists() or process.poll() is not None)
                assert process.poll() is None, (desk.directory / "serve.log").read_text()
                yield process
            finally:
                process.kill()


def addresses(desk: Desk) -> dict[str, str]:
    """The addresses of the listeners by name."""
    found = json.loads((desk.data / "addresses.json").read_text())
    assert isinstance(found, dict)
    return found


def status(address: str, path: str, token: str | None = None) -> int:
    """The status of the response to one request."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=HANGS_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def children(pid: int) -> dict[int, list[str]]:
    """The running children of a process and their command lines."""
    found: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text().split("\0")
        except (OSError, ValueError):
            continue  # not a process, or one that has just ended
    return found


def role_of(pid: int, role: str) -> list[int]:
    """The process ids of the children with one role."""
    return [child for child, command in children(pid).items() if role in command]


def test_commands_change_what_the_running_gateway_answers(desk: Desk) -> None:
    with serving(desk, "--workers", "2") as process:
        assert len(role_of(process.pid, "gateway")) == 2
        proxy = addresses(desk)["proxy"]
        desk.document("user", "add", "ada@example.com", "--role", "editor")
        token = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci")["token"]
        assert status(proxy, "/v1/things/7") == 401
        assert status(proxy, "/v1/things/7", token) == 502  # allowed; there is no backend
        assert status(proxy, "/billing/x", token) == 403
        assert desk.lines("health", "--ready") == ["ok"]
        desk.document("user", "suspend", "ada@example.com")
        assert status(proxy, "/v1/things/7", token) == 401
        again = only_sentence(desk.process("serve"))
        assert f"The data directory {desk.data} is in use by another patgate" in again
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANGS_SECONDS) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["addresses"]["proxy"] == proxy
    assert not (desk.data / "addresses.json").exists()
    log = (desk.directory / "serve.log").read_text()
    assert token.rpartition("_")[2] not in log
    assert all(json.loads(line)["event"] for line in log.splitlines())


def test_nothing_secret_is_in_the_command_line_or_environment_of_a_process(desk: Desk) -> None:
    key = "k" * 20 + "not-for-process-lists" + "k" * 20
    with desk.config.open("a") as configuration:
        configuration.write(f"secret_key: {key}\n")
    with serving(desk) as process:
        for pid in (process.pid, *children(process.pid)):
            for name in ("cmdline", "environ"):
                assert key.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


def test_killed_children_are_replaced_and_the_gateway_serves_again(desk: Desk) -> None:
    with serving(desk) as process:
        proxy = addresses(desk)["proxy"]
        for role in ("gateway", "authority"):
            (victim,) = role_of(process.pid, role)
            os.kill(victim, signal.SIGKILL)
            until(lambda role=role, victim=victim: role_of(process.pid, role) not in ([], [victim]))  # type: ignore[misc]
            until(lambda: status(proxy, "/v1/things/7") == 401)
        until(lambda: desk.patgate("health").returncode == 0)  # the replacement loads the control plane last
        desk.document("user", "add", "ada@example.com", "--role", "editor")


def test_children_end_and_the_lock_is_free_when_the_supervisor_is_killed(desk: Desk) -> None:
    with serving(desk) as process:
        # Their standby processes may also run, and must end as well.
        assert len(role_of(process.pid, "authority")) == len(role_of(process.pid, "gateway")) == 1
        left = list(children(process.pid))
        process.kill()
        process.wait(HANGS_SECONDS)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
    with serving(desk) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(HANGS_SECONDS) == 0


def test_a_first_signal_waits_for_open_requests_and_a_second_one_does_not(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend:  # it accepts requests and never answers
        port = backend.getsockname()[1]
        # Nothing but the second signal ends the request while the test waits.
        patient = f'servers: ["http://127.0.0.1:{port}"], response_timeout: 1h'
        changed = desk.config.read_text().replace('servers: ["http://127.0.0.1:1"]', patient)
        desk.config.write_text(f"{changed}timeouts: {{ drain: 1h }}\n")
        desk.document("user", "add", "ada@example.com", "--role", "editor")
        token = desk.document("token", "create", "--user", "ada@example.com", "--name", "ci")["token"]
        with serving(desk) as process:
            host, _, number = addresses(desk)["proxy"].rpartition(":")
            with socket.create_connection((host, int(number)), timeout=HANGS_SECONDS) as client:
                client.sendall(f"GET /v1/things/7 HTTP/1.1\r\nHost: x\r\nX-API-Key: {token}\r\n\r\n".encode())
                taken, _ = backend.accept()
                with taken:
                    process.send_signal(signal.SIGTERM)
                    until(lambda: '"stopping"' in (desk.directory / "serve.log").read_text())
                    assert len(role_of(process.pid, "gateway")) == 1
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(HANGS_SECONDS) == 0
    assert '"child ended"' not in (desk.directory / "serve.log").read_text()


def test_a_taken_port_is_reported_in_one_sentence_and_nothing_stays(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        good = desk.config.read_text()
        for listener in ("proxy", "control"):
            desk.config.write_text(
                good.replace(f'{listener}: {{ bind: "127.0.0.1:0"', f'{listener}: {{ bind: "127.0.0.1:{port}"')
            )
            expected = f"The {listener} listener cannot use 127.0.0.1:{port}: another process is listening there."
            assert only_sentence(desk.process("serve")) == expected


def test_a_wrong_key_is_reported_in_one_sentence_by_serve_and_commands(desk: Desk) -> None:
    desk.document("user", "list")
    with desk.config.open("a") as configuration:
        configuration.write(f"secret_key: {'z' * 40}\n")
    for command in (["serve"], ["user", "list"]):
        done = desk.process(*command)
        assert "key" in only_sentence(done)
        assert "z" * 40 not in done.stderr


def test_only_an_embedded_store_is_accepted_at_the_start(desk: Desk) -> None:
    """With PostgreSQL the option would be without effect: one acceptance counts for all nodes."""
    with desk.config.open("a") as configuration:
        configuration.write(f"store: postgresql://patgate@127.0.0.1:1/patgate\nsecret_key: {'z' * 40}\n")
    done = desk.process("serve", "--accept-older-store")
    assert done.returncode == 2
    assert "patgate nodes accept" in " ".join(done.stderr.split())
