"""Where the third-party servers are: in an environment of their own, so that their dependencies never meet ours."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.support.gateway import ROOT


def program(name: str) -> str:
    """The path of an installed program: beside our interpreter, in the backends' environment, or the system's."""
    places = [Path(sys.executable).parent, ROOT / ".venv-backends" / "bin", Path("/usr/sbin")]
    found = next((str(place / name) for place in places if (place / name).exists()), None) or shutil.which(name)
    assert found, f"{name} is not installed: `make test` installs what the tests run"
    return found
