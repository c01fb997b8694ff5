"""A copy of the checkout with an environment of its own, in which tests meet the copy's modules and no others."""

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
"""pytest's exit status when a test failed; 2 and above: it could not run them, which a mutant may well bring about."""


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the tests said, and the first that failed, if one did."""

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

    Its environment is made of a line that leads to the copy and one that leads to the libraries of the environment that
    runs this: an editable installation beside those libraries is not followed, so that processes that tests start
    import the copy too, whatever directory they are in.
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
        """Put a text in the place of a module."""
        (self.root / path).write_text(source)

    def run(self, tests: Sequence[str], seconds: float) -> Verdict:
        """Run these test modules until the first fails, for at most so long."""
        command = [str(self.python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PATGATE_", "PYTHON"))}
        # Bytecode is told from its source by second and size; a mutant may have both of the text before it.
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
    """The process and all that it started and left behind: they are in a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
