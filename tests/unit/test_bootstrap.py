"""``make bootstrap``, and tasks that run before it.

``apt-get`` and ``id`` are replaced by scripts: one records its arguments, the other prints a user id.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Machine:
    """A machine that lacks the command ``sprocket`` of the package ``gearbox``; ``user`` is the id of its user."""

    def __init__(self, directory: Path, *, user: int, stocked: bool = True) -> None:
        self._commands = directory
        self._log = directory / "apt-get.log"
        install = f"ln -sf /bin/true {directory}/sprocket" if stocked else ":"
        self._script("id", f"echo {user}")
        self._script("apt-get", f'echo "$@" >> {self._log}; case "$*" in *install*gearbox*) {install};; esac')

    def _script(self, name: str, text: str) -> None:
        script = self._commands / name
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "--no-print-directory", *arguments, "TOOLS=sprocket:gearbox", f"COMPILES={sys.executable}"],
            cwd=ROOT,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
                "PATH": f"{self._commands}{os.pathsep}{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def installed(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


def test_a_task_of_an_unprivileged_user_says_what_is_missing_and_stops(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=1000)
    run = machine.make("system")
    assert run.returncode != 0
    assert "system packages that are missing: gearbox" in run.stderr
    assert "`make bootstrap`" in run.stderr
    assert machine.installed == ""


def test_a_task_of_root_says_what_is_missing_and_installs_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    run = machine.make("system")
    assert run.returncode == 0, run.stderr
    assert "system packages that are missing: gearbox" in run.stderr
    assert "installing them, as `make bootstrap` does" in run.stderr
    assert machine.installed.splitlines()[-1].endswith(" gearbox")


def test_a_task_says_nothing_where_nothing_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    machine.make("bootstrap")
    before = machine.installed
    run = machine.make("system")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert machine.installed == before


def test_bootstrap_installs_for_root_and_refuses_everybody_else(tmp_path: Path) -> None:
    for user in (1000, 0):
        directory = tmp_path / str(user)
        directory.mkdir()
        machine = Machine(directory, user=user)
        run = machine.make("bootstrap")
        assert "gearbox" in run.stdout + run.stderr
        assert (run.returncode == 0, "install" in machine.installed) == (user == 0, user == 0)


@pytest.mark.parametrize("target", ["system", "bootstrap"])
def test_a_package_that_does_not_bring_the_command_is_an_error(target: str, tmp_path: Path) -> None:
    run = Machine(tmp_path, user=0, stocked=False).make(target)
    assert run.returncode != 0
    assert "still missing: gearbox" in run.stderr


@pytest.mark.parametrize("task", ["test", "soak", "fuzz", "mutate", "compiled", "bench"])
def test_a_task_looks_for_system_packages_before_anything_else(task: str, tmp_path: Path) -> None:
    first, _, _ = Machine(tmp_path, user=1000).make("--dry-run", task).stdout.partition("exit 1; fi")
    assert "this task needs system packages that are missing" in first
    assert "-m pip" not in first
