"""What a process of patgate imports, and the limits that it sets itself, before anything else (decision 0008).

Rules of this module:
1. Nothing is imported because of the directory in which a process was started. ``leave_directory`` takes that directory
   out of ``sys.path``, and so comes before every import. This module imports what Python has loaded by then.
2. A child imports what its parent was imported from: the same package, found by the same path (``environment``). It
   checks that it does (``is_same_package``).
3. It knows no other module of this package.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping

PACKAGE = os.path.dirname(os.path.abspath(__file__))
"""The directory of the package that runs now."""
ROOT = os.path.dirname(PACKAGE)
"""Where it is imported from."""

_CHECK = "PATGATE_PACKAGE"
_PATH = "PYTHONPATH"


def leave_directory() -> None:
    """Take the current directory out of ``sys.path``.

    ``python -m`` puts it there, and so does a part of PYTHONPATH that is empty or relative. This package has been
    found.
    """
    try:
        here = os.getcwd()
    except OSError:
        return  # it was removed, and nothing is in it
    if not sys.flags.safe_path and sys.path[:1] in ([""], [here]):
        del sys.path[0]
    unwanted = {os.path.abspath(part) for part in _parts(os.environ) if not os.path.isabs(part)}
    sys.path[:] = [entry for entry in sys.path if entry and entry not in unwanted]


def harden() -> None:
    """What this process makes is its user's alone, and no core dump of it has tokens in it."""
    import resource  # not before ``leave_directory``: Python has not loaded it by itself

    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def program(module: str) -> tuple[str, ...]:
    """The command line that runs a module of this package as a child, with the interpreter that runs now."""
    flags = sys.flags
    alike = [
        "-I" if flags.isolated else "-P",
        *(["-E"] if flags.ignore_environment and not flags.isolated else []),
        *(["-s"] if flags.no_user_site and not flags.isolated else []),
    ]
    return (sys.executable, *alike, "-m", module)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` as a child gets it: nothing of ours, and a path on which it finds this package before any other."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PATGATE_") and name != _PATH}
    parts = [part for part in _parts(environ) if os.path.isabs(part)]
    found = next((part for part in parts if os.path.isfile(os.path.join(part, "proxy", "__init__.py"))), None)
    if found != ROOT and not (found is None and _is_installed()):
        parts = [ROOT, *(part for part in parts if part != ROOT)]
    if parts:
        kept[_PATH] = os.pathsep.join(parts)
    return {**kept, _CHECK: PACKAGE}


def is_same_package() -> bool:
    """Whether this process has the package of the process of patgate that started it, if one did."""
    wanted = os.environ.pop(_CHECK, PACKAGE)
    return os.path.realpath(wanted) == os.path.realpath(PACKAGE)


def _parts(environ: Mapping[str, str]) -> list[str]:
    return environ[_PATH].split(os.pathsep) if environ.get(_PATH) else []


def _is_installed() -> bool:
    """Whether every start of this interpreter finds this package: it lies where packages are installed to."""
    places = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return os.path.realpath(ROOT) in map(os.path.realpath, places)
