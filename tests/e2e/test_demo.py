"""``patgate quickstart``, which ``make demo`` runs: from an empty directory to a first authorised request."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gateway import ROOT, clean_environ, patgate
from tests.support.leaks import DIRECTORIES, SECRETS, secret_part
from tests.support.process import Process, free_port, run, wait_until
from tests.support.recorder import Recorder

#: A printed command, and the status that the line below it promises.
PRINTED = re.compile(r"^ +(curl .+)\n +(\d{3}|None):? ?(.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Printed:
    commands: list[tuple[str, str, str]]
    output: str

    @property
    def token(self) -> str:
        token: str
        (token,) = set(re.findall(r"\b[a-z0-9]+_pat_[0-9A-Za-z]{12}_[0-9A-Za-z]{38}\b", self.output))
        SECRETS.add(token)
        return token


@contextmanager
def quickstart(directory: Path, data: Path, *arguments: str) -> Iterator[Printed]:
    argv = [sys.executable, "-m", "proxy", "quickstart", "--data", str(data), *arguments]
    with started(argv, directory, data) as printed:
        yield printed


@contextmanager
def started(argv: list[str], directory: Path, data: Path) -> Iterator[Printed]:
    DIRECTORIES.add(data)
    log = directory / "quickstart.log"
    before = log.read_text().count("Ctrl-C ends it.") if log.exists() else 0
    with Process(argv, name="quickstart", directory=directory, environ=clean_environ(None), cwd=ROOT) as process:
        wait_until(lambda: process.output.count("Ctrl-C ends it.") > before, "quickstart's words", process=process)
        found = [match.groups() for match in PRINTED.finditer(process.output)]
        yield Printed(commands=[(curl, status, why) for curl, status, why in found], output=process.output)


def status_of(command: str) -> tuple[str, str]:
    """Run the printed command unchanged; return the status and the whole response."""
    words = shlex.split(command)
    assert words[0] == "curl"
    done = run([*words, "--silent", "--show-error", "--noproxy", "*"])
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1], done.stdout


def test_the_printed_command_works_where_patgate_is_not_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``make demo`` runs the command by its path."""
    program = Path(sys.executable).with_name("patgate")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shutil.which("patgate") is None
    argv = [str(program), "quickstart", "--data", str(tmp_path / "data"), "--port", str(free_port(in_a_row=2))]
    with started(argv, tmp_path, tmp_path / "data") as printed:
        assert printed.token
        (line,) = re.findall(r"^  (\S*patgate user set-role .+)$", printed.output, re.MULTILINE)
        done = run(shlex.split(line))
        assert done.returncode == 0, done.stderr
        assert status_of(printed.commands[1][0])[0] == "403"


def test_the_three_printed_commands_behave_as_printed(tmp_path: Path) -> None:
    with quickstart(tmp_path, tmp_path / "data", "--port", str(free_port(in_a_row=2))) as printed:
        token = printed.token
        assert len(printed.commands) == 3
        assert [status for _, status, _ in printed.commands] == ["200", "200", "403"]
        answers = []
        for command, promised, why in printed.commands:
            status, answer = status_of(command)
            assert status == promised, (command.replace(token, "…"), answer)
            assert len(why) > 10
            answers.append(answer)
        assert "x-auth-email" in answers[0].lower()
        assert not any(secret_part(token) in answer for answer in answers)
        assert "application/problem+json" in answers[2]


def test_the_token_is_shown_once_and_kept_nowhere(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with quickstart(tmp_path, data, "--port", str(free_port(in_a_row=2))) as printed:
        secret = secret_part(printed.token).encode()
    for file in data.rglob("*"):
        if file.is_file():
            assert secret not in file.read_bytes(), file.name


def test_a_second_run_keeps_the_people_and_replaces_the_secret(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first_directory, second_directory = tmp_path / "first", tmp_path / "second"
    first_directory.mkdir()
    second_directory.mkdir()
    with quickstart(first_directory, data, "--port", str(free_port(in_a_row=2))) as printed:
        first = printed.token
        old_command = printed.commands[0][0]
    with quickstart(second_directory, data) as printed:
        second = printed.token
        command, promised, _ = printed.commands[0]
        assert status_of(command)[0] == promised
        address = re.search(r"http://[0-9.:]+", command)
        assert address is not None
        assert status_of(re.sub(r"http://[0-9.:]+", address[0], old_command))[0] == "401"
    assert first.rpartition("_")[0] == second.rpartition("_")[0]
    assert first != second


def test_quickstart_in_front_of_an_api_of_ones_own(tmp_path: Path, recorder: Recorder) -> None:
    arguments = ("--upstream", recorder.url, "--port", str(free_port(in_a_row=2)))
    with quickstart(tmp_path, tmp_path / "data", *arguments) as printed:
        command = next(line.strip() for line in printed.output.splitlines() if line.strip().startswith("curl "))
        assert status_of(command)[0] == "200"
        assert recorder.last().only("X-Auth-Role") == "admin"
        assert printed.token.encode() not in recorder.last().head


def test_once_makes_the_requests_itself_and_ends(tmp_path: Path) -> None:
    DIRECTORIES.add(tmp_path / "data")
    done = patgate("quickstart", "--data", str(tmp_path / "data"), "--port", str(free_port(in_a_row=2)), "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("(as expected)") == 3
