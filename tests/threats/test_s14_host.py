"""Threat model §14: patgate imports nothing from the current directory, and its files are private."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import startup
from proxy.cli.main import COMMANDS
from tests.support.builds import is_compiled
from tests.support.gateway import ROOT, Patgate
from tests.support.process import Process, children, command_line, free_port, of_process, run, wait_until
from tests.support.recorder import Recorder

PLANTED = "this was planted"
MODULES = (
    "asyncio", "click", "httptools", "json", "logging", "multidict", "pydantic", "resource", "secrets", "sitecustomize",
    "sqlalchemy", "ssl", "startup", "usercustomize", "uvloop", "yaml",
)  # fmt: skip
#: Names of modules of patgate, and of the package itself.
PACKAGES = ("proxy", "tests", "aiohttp", "alembic", "rich")
FILES = {
    ".env": "PATGATE_WORKERS=none\n",
    "alembic.ini": "[alembic]\nscript_location = here\n",
    "patgate.yaml": "workers: none\n",
    "pyproject.toml": "[tool.patgate]\nworkers = 'none'\n",
    "setup.cfg": "[metadata]\nname = planted\n",
}
CONSOLE_SCRIPT = Path(sys.executable).parent / "patgate"


def environ(**more: str) -> dict[str, str]:
    """The environment of an operator's shell: only Python variables for the build under test, none of patgate."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PATGATE_", "PYTHON"))}
    build = Path(startup.ROOT)
    tested = {} if build == ROOT else {"PYTHONPATH": str(build)}
    return kept | {"NO_COLOR": "1", "COLUMNS": "200"} | tested | more


def plant(directory: Path, *, package: bool = True) -> Path:
    """A directory with modules that leave a mark when they are imported."""
    directory.mkdir()
    mark = f"open({str(directory / 'mark')!r}, 'a').write(__name__ + chr(10))\nraise SystemExit({PLANTED!r})\n"
    for name in MODULES:
        (directory / f"{name}.py").write_text(mark)
    for name in PACKAGES if package else PACKAGES[1:]:
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(mark)
    for name, text in FILES.items():
        (directory / name).write_text(text)
    return directory


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Path]:
    directory = plant(tmp_path / "planted")
    yield directory
    assert not (directory / "mark").exists(), (directory / "mark").read_text()


@pytest.fixture
def unserved(tmp_path: Path, recorder: Recorder) -> Patgate:
    """A configuration without a running gateway."""
    routes = [{"path": "/public/**", "upstream": "app", "access": "public"}]
    return Patgate(tmp_path / "node", {"upstreams": {"app": {"servers": [recorder.url]}}, "routes": routes})


def test_a_gateway_starts_from_its_own_package_and_restarts_its_children_from_it(
    planted: Path, unserved: Patgate
) -> None:
    argv = [str(CONSOLE_SCRIPT), "serve", "--config", str(unserved.config_file)]
    with Process(argv, name="patgate", directory=unserved.directory, cwd=planted, environ=environ()) as process:
        unserved._process = process
        unserved.expects("child ended")
        unserved.wait_ready()
        with unserved.connect() as connection:
            assert connection.request("GET", "/public/a").status == 200
        victims = [*unserved.all_workers(), unserved.authority_pid()]
        for victim in victims:
            unserved.kill(victim)
        unserved.all_workers()
        unserved.wait_ready()
        imported = {path for pid in children(process.pid) for path in mapped(pid)}
        assert all(path.is_relative_to(startup.ROOT) for path in imported if "proxy" in path.parts)


def mapped(pid: int) -> list[Path]:
    """The shared libraries that a process has loaded."""
    lines = of_process(pid, "maps").decode().splitlines()
    return [Path(line.split()[-1]) for line in lines if line.endswith(".so")]


# The command makes no difference to where the compiled package is found.
@pytest.mark.parametrize("command", ["serve", "--version"] if is_compiled() else [*COMMANDS, "--version"])
def test_every_command_starts_from_its_own_package(command: str, planted: Path) -> None:
    arguments = [command] if command == "--version" else [command, "--help"]
    done = run([str(CONSOLE_SCRIPT), *arguments], cwd=planted, environ=environ())
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_command_that_works_on_the_store_starts_from_its_own_package(planted: Path, unserved: Patgate) -> None:
    argv = [str(CONSOLE_SCRIPT), "user", "list", "--json", "--config", str(unserved.config_file)]
    done = run(argv, cwd=planted, environ=environ())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_quickstart_starts_everything_from_its_own_package(planted: Path, tmp_path: Path) -> None:
    port = str(free_port(in_a_row=2))  # another quickstart may be about to use the default ones
    argv = [str(CONSOLE_SCRIPT), "quickstart", "--once", "--port", port, "--data", str(tmp_path / "data")]
    done = run(argv, cwd=planted, environ=environ())
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_empty_or_relative_part_of_pythonpath_leads_nowhere(tmp_path: Path, unserved: Patgate) -> None:
    """``PYTHONPATH=$PYTHONPATH:/opt/lib`` has an empty part, which means the current directory."""
    planted = plant(tmp_path / "planted", package=False)
    for name in ("asyncio", "json", "logging", "resource", "sitecustomize", "usercustomize"):
        (planted / f"{name}.py").unlink()  # Python imports these before any code of patgate runs
    given = environ()
    for path in (":", ".:", "../planted"):
        given["PYTHONPATH"] = os.pathsep.join([path, given.get("PYTHONPATH", "")])
        argv = [str(CONSOLE_SCRIPT), "check", "--config", str(unserved.config_file)]
        done = run(argv, cwd=planted, environ=given)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (planted / "mark").exists()


def test_python_m_proxy_imports_nothing_but_the_package_from_where_it_is_started(
    tmp_path: Path, unserved: Patgate
) -> None:
    planted = plant(tmp_path / "planted", package=False)
    for name in ("sitecustomize", "usercustomize"):
        assert (planted / f"{name}.py").exists(), "Python looks for these before the directory is in its path"
    argv = [sys.executable, "-m", "proxy", "check", "--config", str(unserved.config_file)]
    done = run(argv, cwd=planted, environ=environ())
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (planted / "mark").exists()


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", None),
        (":", None),
        ("relative:.", None),
        ("/opt/operators", "/opt/operators"),
        (":/opt/operators:../x", "/opt/operators"),
    ],
)
def test_a_child_gets_the_whole_paths_of_pythonpath_and_its_parents_package(given: str, path: str | None) -> None:
    passed = startup.environment({"PYTHONPATH": given, "PATGATE_SECRET_KEY": "x", "HOME": "/root"})
    parts = passed.get("PYTHONPATH", "").split(os.pathsep)
    assert [part for part in parts if part and part != startup.ROOT] == ([] if path is None else [path])
    assert (passed["HOME"], "PATGATE_SECRET_KEY" in passed) == ("/root", False)


def test_a_child_finds_its_parents_package_before_any_other(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "proxy").mkdir(parents=True)
    (other / "proxy" / "__init__.py").write_text("raise SystemExit('another package')\n")
    passed = startup.environment({**os.environ, "PYTHONPATH": str(other)})
    found = run([*startup.program("proxy"), "--version"], cwd=other, environ=passed)
    assert found.returncode == 0, found.stderr


def test_a_child_that_finds_another_package_does_not_run(tmp_path: Path) -> None:
    passed = startup.environment(os.environ) | {"PATGATE_PACKAGE": str(tmp_path)}
    done = run([*startup.program("proxy.app"), "gateway"], cwd=tmp_path, environ=passed)
    assert done.returncode == 1
    assert "found another package" in done.stderr


def test_with_umask_0_everything_that_is_made_is_its_users_alone_and_no_process_dumps_core(
    tmp_path: Path, unserved: Patgate
) -> None:
    argv = ["/bin/sh", "-c", 'umask 0; exec "$@"', "sh", str(CONSOLE_SCRIPT)]
    argv += ["serve", "--config", str(unserved.config_file)]
    with Process(argv, name="patgate", directory=unserved.directory, cwd=tmp_path, environ=environ()) as process:
        unserved._process = process
        unserved.wait_ready()
        wait_until((unserved.data / "addresses.json").exists, "the supervisor's start complete", process=process)
        loose = [path.name for path in unserved.data.rglob("*") if stat.S_IMODE(path.lstat().st_mode) & 0o077]
        assert loose == []
        pids = [process.pid, *children(process.pid)]
        assert len(pids) >= 4
        for pid in pids:
            limits = of_process(pid, "limits").decode()
            [core] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
            assert core.split()[4:6] == ["0", "0"], command_line(pid)
