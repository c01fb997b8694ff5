"""Describing the running interpreter: version, builder, and whether it has profile-guided optimisation.

An interpreter without it takes up to one and a half times as long for the same program, so its figures do not predict
an operator's: they are labelled, and never written into docs/benchmarks.md.

A build with ``configure --enable-optimizations`` has that in its own configuration. Debian and Ubuntu build with
``make profile-opt`` and remove the flags from the interpreter's configuration (debian/rules of python3.11:
``with_pgo``), so there the package that owns the file is the evidence.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError

YES: Final = "yes"
NO: Final = "NO: an operator's interpreter is markedly faster"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpreter:
    """The facts about an interpreter that a reader of a figure needs."""

    version: str
    """Implementation and version, "CPython 3.11.2"."""
    builder: str
    """Who built it, and the evidence for how."""
    optimised: bool

    def facts(self) -> dict[str, str]:
        """The lines for the list of the machine and its versions."""
        return {"Python": f"{self.version}, {self.builder}", "Python optimised": YES if self.optimised else NO}


def owner(executable: Path) -> str | None:
    """The Debian or Ubuntu package that ``executable`` belongs to, with its version; None if there is none."""
    if shutil.which("dpkg-query") is None:
        return None
    environ = {**os.environ, "LC_ALL": "C"}

    def ask(*arguments: str) -> str:
        command = ["dpkg-query", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    package = ask("--search", str(executable)).partition(": ")[0]
    return ask("--show", "--showformat=${Package} ${Version}", package) or None if package else None


def describe(
    *, version: str, executable: Path, configuration: str, owned_by: Callable[[Path], str | None] = owner
) -> Interpreter:
    """Describe the interpreter ``executable``; ``configuration`` holds the arguments of its configure script."""
    if "--enable-optimizations" in configuration:
        return Interpreter(version=version, builder="configured with --enable-optimizations", optimised=True)
    if package := owned_by(executable):
        builder = f"package {package} of the distribution, which builds it by `make profile-opt`"
        return Interpreter(version=version, builder=builder, optimised=True)
    return Interpreter(version=version, builder="configured without --enable-optimizations", optimised=False)


def running() -> Interpreter:
    """The interpreter of this process."""
    return describe(
        version=f"{platform.python_implementation()} {platform.python_version()}",
        # A virtual environment has a link to it, or a copy that no package owns.
        executable=Path(getattr(sys, "_base_executable", sys.executable)).resolve(),
        configuration=str(sysconfig.get_config_var("CONFIG_ARGS") or ""),
    )


def require_optimised(found: Interpreter) -> None:
    """Raise BenchError for an interpreter whose figures must not be published."""
    if not found.optimised:
        raise BenchError(
            f"{found.version} is {found.builder}, so its figures are not written into docs/benchmarks.md: "
            "run `make bench`, which measures with the system's interpreter, or name another: "
            "make bench SPEED_PYTHON=python3.13."
        )
