"""The tests run the requested build of the gateway, in this process and in every process that they start."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest

from proxy.gateway.process.build import is_compiled
from tests.support.builds import COMPILED, ROOT
from tests.support.process import run

SHOW = (
    "import sys\nfrom importlib import import_module\nprint(*(import_module(name).__file__ for name in sys.argv[1:]))"
)


@pytest.fixture
def suffix(pytestconfig: pytest.Config) -> str:
    """The suffix of a hot module's file in this run."""
    return ".so" if pytestconfig.getoption("--compiled") else ".py"


def test_the_modules_under_test_are_of_the_requested_build(suffix: str) -> None:
    files = [import_module(name).__file__ or "" for name in COMPILED]
    assert [file for file in files if not file.endswith(suffix)] == []


def test_a_process_that_a_test_starts_runs_the_same_build(suffix: str, tmp_path: Path) -> None:
    files = run([sys.executable, "-c", SHOW, *COMPILED], cwd=tmp_path).stdout.split()
    assert len(files) == len(COMPILED)
    assert [file for file in files if not file.endswith(suffix)] == []


def test_the_gateway_detects_which_build_it_is(suffix: str) -> None:
    assert is_compiled() == (suffix == ".so")


def test_no_binary_lies_among_the_sources() -> None:
    assert list((ROOT / "proxy").rglob("*.so")) == []


def test_compiled_modules_need_no_compiler_at_run_time() -> None:
    """The modules stay plain typed Python: without mypy's extensions they run anywhere."""
    for name in COMPILED:
        tree = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_bytes())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {module for module in imported if module and module.startswith(("mypy", "librt"))}
