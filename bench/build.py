"""Which build of patgate is measured: the compiled package (`make compiled`), or the sources as they are.

The benchmark itself runs from the sources; what it starts inherits the choice through the environment. A compiled
package that was made from other sources than these is an error, never a figure.
"""

import os
from pathlib import Path
from typing import Final

from bench.errors import BenchError

_ROOT: Final = Path(__file__).resolve().parent.parent
_COMPILED: Final = _ROOT / "build" / "compiled"


def choose(*, pure: bool) -> str:
    """Let the patgates that this process starts be of one build; its name for the reader.

    Raises BenchError where the compiled package is missing or older than the sources.
    """
    if pure:
        os.environ.pop("PYTHONPATH", None)
        return "pure Python"
    if not list(_COMPILED.glob("*__mypyc*.so")):
        raise BenchError("There is no compiled package: run `make compiled`, or measure the sources with --pure.")
    for built in _COMPILED.glob("proxy/**/*.py"):
        source = _ROOT / built.relative_to(_COMPILED)
        if not source.is_file() or source.read_bytes() != built.read_bytes():
            raise BenchError(f"The compiled package is older than {source.relative_to(_ROOT)}: run `make compiled`.")
    os.environ["PYTHONPATH"] = str(_COMPILED)
    # Otherwise `python -m` would look into the working directory first, and that is the sources'.
    os.environ["PYTHONSAFEPATH"] = "1"
    return "compiled"


def compiled_was_chosen() -> bool:
    """Whether what this process starts ought to be compiled."""
    return os.environ.get("PYTHONPATH") == str(_COMPILED)
