"""A copy of the checkout with a separate environment, in which tests import only the modules of the copy."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tests.mutation.table import ROOT

_SCRIPT: Final = "#!{python}\nimport sys\nfrom proxy.cli.main import main\nsys.exit(main())\n"
_ENDED_BY_TESTS: Final = 1
"""pytest's exit status if a test failed; 2 and above: it could not run the tests, which a mutant may cause."""


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The result of the tests, and the first one that failed, if any."""

    outcome: Outcome
    test: str = ""
    output: str = ""


def files(root: Path = ROOT) -> list[str]:
    """Every file of the checkout that git would commit."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, check=True,
    ).stdout  # fmt: skip
    return [name for name in listing.decode().split("\0") if name and (root / name).is_file()]


class Tree:
    """The copy in ``directory``.

    Its environment has one path to the copy and one to the libraries of the environment that runs this. It ignores an
    editable installation next to those libraries, so that processes that tests start also import the copy, whatever
    their working directory.
    """

    def __init__(self, directory: Path, root: Path = ROOT) -> None:
        self.root = directory
        for name in files(root):
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target)
        venv.create(directory / ".venv", symlinks=True)
        binaries = directory / ".venv" / "bin"
        self.python = binaries / "python"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        libraries = sysconfig.get_path("purelib")
        (directory / ".venv" / "lib" / version / "site-packages" / "copy.pth").write_text(f"{directory}\n{libraries}\n")
        for path in Path(sysconfig.get_path("scripts")).iterdir():
            if not (binaries / path.name).exists():
                (binaries / path.name).symlink_to(path)
        (binaries / "patgate").unlink(missing_ok=True)
        (binaries / "patgate").write_text(_SCRIPT.format(python=self.python))
        (binaries / "patgate").chmod(0o755)
        if (backends := root / ".venv-backends").exists():
            (directory / ".venv-backends").symlink_to(backends)

    def write(self, path: str, source: str) -> None:
        """Replace the text of a module."""
        (self.root / path).write_text(source)

    def run(self, tests: Sequence[str], seconds: float) -> Verdict:
        """Run these test modules until the first failure, for at most ``seconds``."""
        command = [str(self.python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PATGATE_", "PYTHON"))}
        # Bytecode is matched to its source by second and size; a mutant may have both of the previous text.
        environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "CI": ""}
        with subprocess.Popen(
            [*command, *tests], cwd=self.root, env=environ, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                _end(process)
                return Verdict(outcome=Outcome.TIMEOUT)
            finally:
                _end(process)
        if process.returncode == 0:
            return Verdict(outcome=Outcome.PASSED)
        marks = ("FAILED ", "ERROR ")
        test = next((line for line in output.splitlines() if line.startswith(marks)), "")
        return Verdict(outcome=Outcome.FAILED, test=test, output=output)


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and all processes that it started: they have their own session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
