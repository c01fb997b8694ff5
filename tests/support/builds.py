"""The two builds of the package under test: the sources, and ``build/compiled`` (decision 0004)."""

from __future__ import annotations

import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "compiled"

#: The full names of the modules that ``PATGATE_COMPILE=1`` compiles.
COMPILED: tuple[str, ...] = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["patgate"]["compiled"])


def origin(module: str) -> Path:
    """The file from which this process has loaded, or would load, a module."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, f"there is no {module}"
    return Path(spec.origin)


def is_compiled() -> bool:
    """Whether this process tests the compiled package."""
    return all(origin(name).suffix == ".so" for name in COMPILED)


def problem_of_the_compiled_build() -> str | None:
    """Why this process does not test an up-to-date compiled package; None if it does."""
    pure = [name for name in COMPILED if origin(name).suffix != ".so" or not origin(name).is_relative_to(BUILT)]
    if pure:
        return f"{', '.join(pure)} would not be loaded from build/compiled: run `make compiled`, and set PYTHONPATH"
    stale = [
        built.relative_to(BUILT).as_posix()
        for built in BUILT.glob("proxy/**/*.py")
        if not (ROOT / built.relative_to(BUILT)).is_file()
        or (ROOT / built.relative_to(BUILT)).read_bytes() != built.read_bytes()
    ]
    if stale:
        return f"build/compiled is older than {', '.join(sorted(stale))}: run `make compiled`"
    return None
