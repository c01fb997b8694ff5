"""The build to measure is a compiled package of exactly its checkout's sources, or those sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.system import build


def checkout(directory: Path, *, compiled: str = "build/compiled") -> Path:
    """The smallest tree that counts as a checkout."""
    for place in (directory, directory / compiled):
        (place / "proxy").mkdir(parents=True)
        (place / "proxy" / "__init__.py").write_text("ORIGIN = __file__\n")
    (directory / compiled / "patgate__mypyc.cpython-311.so").touch()
    return directory


@pytest.fixture(autouse=True)
def _ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/anywhere/.venv")


def test_a_checkout_s_compiled_package_is_the_one_that_runs(tmp_path: Path) -> None:
    made = build.of(checkout(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", "import proxy; print(proxy.ORIGIN)"],
        cwd=tmp_path, env=made.environ(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()) == tmp_path / "build/compiled/proxy/__init__.py"
    assert made.name == "compiled"


def test_the_speed_environment_has_its_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout(tmp_path, compiled="build/compiled-speed")
    with pytest.raises(BenchError, match="make compiled"):
        build.of(root)
    monkeypatch.setattr(sys, "prefix", f"/anywhere/{build.SPEED}")
    assert build.of(root).compiled == root / "build/compiled-speed"


def test_a_package_older_than_its_sources_is_refused(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    (root / "proxy" / "__init__.py").write_text("ORIGIN = 'edited'\n")
    with pytest.raises(BenchError, match="older than"):
        build.of(root)


def test_pure_measures_the_sources(tmp_path: Path) -> None:
    made = build.of(tmp_path, pure=True)
    assert made.name == "pure Python"
    assert made.environ()["PYTHONPATH"] == str(tmp_path)


def test_started_processes_inherit_no_setting_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATGATE_WORKERS", "7")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    environ = build.of(tmp_path, pure=True).environ()
    assert {name for name in environ if name.startswith(("PATGATE_", "PYTHON"))} == {"PYTHONPATH", "PYTHONSAFEPATH"}


def test_a_process_that_has_mapped_no_compiled_library_is_not_the_compiled_build(tmp_path: Path) -> None:
    made = build.of(checkout(tmp_path))
    with pytest.raises(BenchError, match="another build"):
        made.check(os.getpid())
    build.of(tmp_path, pure=True).check(os.getpid())
