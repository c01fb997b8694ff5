"""Compiles the gateway's hot path if PATGATE_COMPILE=1; pyproject.toml has everything else.

By default the package is pure Python and needs no compiler (docs/decisions/0004-compiled-hot-path.md).
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, setup

GROUP = "patgate"
"""The name of the shared library of all compiled modules, so that its file name does not depend on their list."""


def extensions() -> list[Extension]:
    """The modules to compile, if any. Exits with a message if they cannot be compiled."""
    if os.environ.get("PATGATE_COMPILE", "") in {"", "0"}:
        return []
    try:
        from mypyc.build import mypycify
    except ImportError:
        sys.exit("PATGATE_COMPILE=1 needs mypy in the build environment: install it, or build without.")
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        sys.exit(f"PATGATE_COMPILE=1 needs the C compiler {compiler}: install it, or build without.")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        sys.exit("PATGATE_COMPILE=1 needs the C headers of this Python: install them, or build without.")
    modules = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["patgate"]["compiled"]
    paths = [module.replace(".", "/") + ".py" for module in modules]
    compiled: list[Extension] = mypycify(
        paths, opt_level="3", debug_level="0", group_name=GROUP, target_dir="build/objects"
    )
    return compiled


setup(ext_modules=extensions())
