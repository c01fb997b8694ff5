"""Process startup: the import path, hardening, and the environment of child processes (decision 0008).

Rules of this module:
1. A process imports nothing from its current directory. ``leave_directory`` removes it from ``sys.path``, before all
   other imports. This module imports only modules that Python has already loaded.
2. A child imports the same package as its parent, from the same path (``environment``), and verifies this
   (``is_same_package``).
3. It imports no other module of this package.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping

PACKAGE = os.path.dirname(os.path.abspath(__file__))
"""The directory of the running package."""
ROOT = os.path.dirname(PACKAGE)
"""The directory from which it is imported."""

_CHECK = "PATGATE_PACKAGE"
_PATH = "PYTHONPATH"


def leave_directory() -> None:
    """Remove the current directory from ``sys.path``.

    ``python -m`` adds it, and so does an empty or relative part of PYTHONPATH. This package is already imported.
    """
    try:
        here = os.getcwd()
    except OSError:
        return  # it was removed, so nothing can be imported from it
    if not sys.flags.safe_path and sys.path[:1] in ([""], [here]):
        del sys.path[0]
    unwanted = {os.path.abspath(part) for part in _parts(os.environ) if not os.path.isabs(part)}
    sys.path[:] = [entry for entry in sys.path if entry and entry not in unwanted]


def harden() -> None:
    """Make new files private to the user (umask), and disable core dumps, which would contain tokens."""
    import resource  # not before ``leave_directory``: Python has not loaded it yet

    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def program(module: str) -> tuple[str, ...]:
    """The command line that runs a module of this package as a child, with this interpreter and its flags."""
    flags = sys.flags
    same_flags = [
        "-I" if flags.isolated else "-P",
        *(["-E"] if flags.ignore_environment and not flags.isolated else []),
        *(["-s"] if flags.no_user_site and not flags.isolated else []),
    ]
    return (sys.executable, *same_flags, "-m", module)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for a child: without patgate's variables, and with a path on which it finds this package first."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PATGATE_") and name != _PATH}
    parts = [part for part in _parts(environ) if os.path.isabs(part)]
    found = next((part for part in parts if os.path.isfile(os.path.join(part, "proxy", "__init__.py"))), None)
    if found != ROOT and not (found is None and _is_installed()):
        parts = [ROOT, *(part for part in parts if part != ROOT)]
    if parts:
        kept[_PATH] = os.pathsep.join(parts)
    return {**kept, _CHECK: PACKAGE}


def is_same_package() -> bool:
    """Whether this process runs the same package as the patgate process that started it, if any."""
    wanted = os.environ.pop(_CHECK, PACKAGE)
    return os.path.realpath(wanted) == os.path.realpath(PACKAGE)


def _parts(environ: Mapping[str, str]) -> list[str]:
    return environ[_PATH].split(os.pathsep) if environ.get(_PATH) else []


def _is_installed() -> bool:
    """Whether this package is in a site-packages directory, so that every start of this interpreter finds it."""
    directories = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return os.path.realpath(ROOT) in map(os.path.realpath, directories)
