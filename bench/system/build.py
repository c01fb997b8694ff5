"""Choosing the build of patgate to measure: the compiled package or the sources, of this checkout or of another.

``make compiled`` builds the package that the tests run; ``make bench`` builds its own, for the interpreter that it
measures with. The benchmark itself runs from the sources; processes that it starts get their build through the
environment. A compiled package built from other sources is an error, never a figure.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import BenchError

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
SPEED: Final = ".venv-speed"
"""The virtual environment that ``make bench`` creates and measures with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """A patgate to start: its checkout, and the directory of its compiled package (None for the sources)."""

    root: Path
    compiled: Path | None

    @property
    def name(self) -> str:
        """The kind of build, for reports."""
        return "pure Python" if self.compiled is None else "compiled"

    def environ(self) -> dict[str, str]:
        """The environment with which a process and its children run this build."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PATGATE_", "PYTHON"))}
        # Without PYTHONSAFEPATH ``python -m`` would import from the working directory first: the sources.
        return {**kept, "PYTHONPATH": str(self.compiled or self.root), "PYTHONSAFEPATH": "1"}

    def check(self, worker: int) -> None:
        """Check that the process ``worker`` runs this build. Raises BenchError if it maps another library, or none."""
        mapped = {
            Path(line.split(maxsplit=5)[5]).parent
            for line in Path(f"/proc/{worker}/maps").read_text().splitlines()
            if "__mypyc" in line
        }
        if mapped != ({self.compiled} if self.compiled else set()):
            raise BenchError("patgate runs another build than the one that is to be measured.")


_chosen = Build(root=_ROOT, compiled=None)


def choose(*, pure: bool) -> Build:
    """Choose the build of this checkout that this process starts from now on. Raises BenchError as ``of`` does."""
    global _chosen
    _chosen = of(_ROOT, pure=pure)
    return _chosen


def chosen() -> Build:
    """The chosen build; the sources by default."""
    return _chosen


def of(root: Path, *, pure: bool = False) -> Build:
    """The build of the checkout ``root`` for the running interpreter.

    Raises BenchError if its compiled package is missing or older than its sources.
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
