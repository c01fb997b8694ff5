"""Locates the third-party servers, which have an environment of their own so that dependencies do not conflict."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.support.gateway import ROOT


def program(name: str) -> str:
    """The path of a program: beside our interpreter, in the backends' environment, or on the system."""
    places = [Path(sys.executable).parent, ROOT / ".venv-backends" / "bin", Path("/usr/sbin")]
    found = next((str(place / name) for place in places if (place / name).exists()), None) or shutil.which(name)
    assert found, f"{name} is not installed: `make test` installs what the tests run"
    return found
