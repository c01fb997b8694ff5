"""``setup.py``: builds a pure package by default, and reports in one sentence why it cannot compile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from tests.support.builds import COMPILED, ROOT


def setup(environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``setup.py --version``, which collects the modules to compile and writes nothing."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PATGATE_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=kept | dict(environ), capture_output=True, text=True
    )


@pytest.mark.parametrize("value", [{}, {"PATGATE_COMPILE": ""}, {"PATGATE_COMPILE": "0"}])
def test_an_ordinary_installation_needs_no_compiler(value: Mapping[str, str]) -> None:
    assert setup({**value, "CC": "no-such-compiler"}).returncode == 0


def test_a_missing_compiler_is_named_in_one_sentence() -> None:
    done = setup({"PATGATE_COMPILE": "1", "CC": "no-such-compiler"})
    assert done.returncode != 0
    assert done.stderr == "PATGATE_COMPILE=1 needs the C compiler no-such-compiler: install it, or build without.\n"


def test_every_compiled_module_exists() -> None:
    missing = [name for name in COMPILED if not (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    assert missing == []
    assert len(set(COMPILED)) == len(COMPILED)
