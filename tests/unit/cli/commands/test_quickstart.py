"""``patgate quickstart``: one command starts a gateway, and the printed requests have the printed results."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from proxy.cli.commands.quickstart import _echo_backend
from proxy.cli.commands.quickstart_steps import configuration, demo_steps, upstream_steps
from proxy.settings.load import load
from tests.support.process import HANGS_SECONDS, free_port
from tests.unit.cli.running import Desk, environment

VALUE = re.compile(r"demo_pat_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}")
TOKEN = "demo_pat_" + "0" * 12 + "_" + "0" * 38


def once(desk: Desk, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxy", "quickstart", "--once", *options]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=HANGS_SECONDS,
        check=False,
        cwd=desk.directory,
        env=environment(),
    )


def quickstart(desk: Desk, *options: str) -> list[str]:
    """The lines that one run prints."""
    done = once(desk, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_quickstart_works_as_printed_and_runs_again_in_the_same_directory(desk: Desk) -> None:
    # Another quickstart may be about to use the default ports.
    first = quickstart(desk, "--port", str(free_port(in_a_row=2)))
    (token,) = {line.strip() for line in first if VALUE.fullmatch(line.strip())}
    curls = [line.strip() for line in first if line.startswith("  curl ")]
    assert len(curls) == 3
    assert sum("(as expected)" in line for line in first) == 3
    assert any(line.startswith("403 ") for line in first)
    assert any("refused, because" in line for line in first)
    data = desk.directory / "patgate-data"
    before = (data / "patgate.yaml").read_text()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        # Another process uses the port of the first run.
        port = taken.getsockname()[1]
        (data / "patgate.yaml").write_text(
            re.sub(r"proxy: \{ bind: .* \}", f'proxy: {{ bind: "127.0.0.1:{port}" }}', before)
        )
        second = quickstart(desk)
    (renewed,) = {line.strip() for line in second if VALUE.fullmatch(line.strip())}
    assert renewed != token
    assert renewed.rpartition("_")[0] == token.rpartition("_")[0]
    assert any("no longer works" in line for line in second)
    assert token.rpartition("_")[2] not in (data / "patgate.log").read_text()


@pytest.mark.parametrize("name", ["patgate.yaml", "patgate.log"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_place_of_a_quickstart_file_is_not_followed(desk: Desk, name: str, there: bool) -> None:
    data, target = desk.directory / "patgate-data", desk.directory / "victim"
    data.mkdir(mode=0o700)
    (data / name).symlink_to(target)
    if there:
        target.write_text("routes: []\n")
    done = once(desk)
    assert done.returncode == 1 and f"{name} in the data directory is not a regular file of this user" in done.stderr
    assert target.exists() == there and (not there or target.read_text() == "routes: []\n")


def test_quickstart_serves_a_given_upstream_until_it_is_stopped(desk: Desk) -> None:
    backend = subprocess.Popen(
        [sys.executable, "-m", "proxy", "whoami", "--bind", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with backend:
        assert backend.stdout is not None
        url = backend.stdout.readline().split()[-1]
        command = [sys.executable, "-m", "proxy", "quickstart", "--json", "--upstream", url, "--data", "data"]
        command += ["--port", str(free_port(in_a_row=2))]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=desk.directory, env=environment()
        ) as process:
            assert process.stdout is not None
            text = ""
            while not text.endswith("\n}\n"):
                line = process.stdout.readline()
                assert line, "it ended early"
                text += line
            document = json.loads(text)
            request = urllib.request.Request(
                f"{document['url']}/", headers={"Authorization": f"Bearer {document['token']}"}
            )
            with urllib.request.urlopen(request, timeout=HANGS_SECONDS) as answer:
                headers = {name.lower(): value for name, value in json.loads(answer.read())["headers"]}
            assert headers["x-auth-email"] == "admin@example.com"
            assert "authorization" not in headers
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANGS_SECONDS) == 0
        backend.terminate()


def test_the_configuration_that_quickstart_writes_is_valid(tmp_path: Path) -> None:
    for demo in (True, False):
        file = tmp_path / "patgate.yaml"
        file.write_text(
            configuration(
                data_dir=tmp_path / 'a "quoted" place',
                proxy="127.0.0.1:8080",
                control="127.0.0.1:8081",
                upstream="http://127.0.0.1:3000",
                demo=demo,
            )
        )
        assert load(file, {}).data_dir == tmp_path / 'a "quoted" place'


def test_each_printed_request_is_one_shell_line_and_one_of_them_is_refused() -> None:
    for steps in (demo_steps("127.0.0.1:8080", TOKEN), upstream_steps("127.0.0.1:8080", TOKEN)):
        assert len(steps) == 3
        assert [step.expect in (401, 403) for step in steps].count(True) == 1
        for step in steps:
            assert "\n" not in step.curl
            words = shlex.split(step.curl)
            assert words[0] == "curl"
            assert words[-1] == step.url


async def test_the_echo_backend_uses_another_port_when_its_port_is_taken_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, (tmp_path / "log").open("w") as log:
        monkeypatch.setattr("proxy.cli.commands.quickstart.WHOAMI", f"127.0.0.1:{taken.getsockname()[1]}")
        # As it was at the check.
        monkeypatch.setattr("proxy.supervisor.listeners.free", lambda *_: True)
        async with _echo_backend(log.fileno()) as url:
            with urllib.request.urlopen(f"{url}/hello", timeout=HANGS_SECONDS) as answer:
                assert answer.status == 200
