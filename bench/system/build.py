"""Which build of patgate is measured: the compiled package, or the sources as they are; this checkout's, or another's.

``make compiled`` makes the package that the tests run; ``make bench`` one of its own, for the interpreter that it
measures with. The benchmark itself runs from the sources; what it starts is given its build in the environment. A
compiled package that was made from other sources than these is an error, never a figure.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
SPEED: Final = ".venv-speed"
"""The environment that ``make bench`` makes and measures with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """A patgate to start: the checkout it is of, and the directory of its compiled package, None for the sources."""

    root: Path
    compiled: Path | None

    @property
    def name(self) -> str:
        """For the reader."""
        return "pure Python" if self.compiled is None else "compiled"

    def environ(self) -> dict[str, str]:
        """What a process is started with, so that it and its children run this build."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PATGATE_", "PYTHON"))}
        # Without PYTHONSAFEPATH ``python -m`` would look into the working directory first, and that is the sources'.
        return {**kept, "PYTHONPATH": str(self.compiled or self.root), "PYTHONSAFEPATH": "1"}

    def check(self, worker: int) -> None:
        """That the process ``worker`` runs it. Raises BenchError where it has mapped another library, or none."""
        mapped = {
            Path(line.split(maxsplit=5)[5]).parent
            for line in Path(f"/proc/{worker}/maps").read_text().splitlines()
            if "__mypyc" in line
        }
        if mapped != ({self.compiled} if self.compiled else set()):
            raise BenchError("patgate runs another build than the one that is to be measured.")


_chosen = Build(root=_ROOT, compiled=None)


def choose(*, pure: bool) -> Build:
    """Let the patgates that this process starts be of one build of this checkout. Raises BenchError as ``of`` does."""
    global _chosen
    _chosen = of(_ROOT, pure=pure)
    return _chosen


def chosen() -> Build:
    """What was chosen; the sources where nothing was."""
    return _chosen


def of(root: Path, *, pure: bool = False) -> Build:
    """The build of the checkout ``root`` for the interpreter that runs.

    Raises BenchError where its compiled package is missing or older than its sources.
    """
    root = root.resolve()
    if pure:
        return Build(root=root, compiled=None)
    speed = Path(sys.prefix).name == SPEED
    compiled = root / "build" / ("compiled-speed" if speed else "compiled")
    if not list(compiled.glob("*__mypyc*.so")):
        how = "`make bench` makes it" if speed else "run `make compiled`"
        raise BenchError(f"There is no compiled package in {compiled}: {how}, or measure the sources with --pure.")
    for built in compiled.glob("proxy/**/*.py"):
        source = root / built.relative_to(compiled)
        if not source.is_file() or source.read_bytes() != built.read_bytes():
            raise BenchError(f"The compiled package in {compiled} is older than {source}: make it again.")
    return Build(root=root, compiled=compiled)
