"""Another user of the system, as far as this process may be one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OTHER = 65534
"""nobody, or anybody else but ourselves."""


def give_away(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Let a file belong to another user: where we may not give it away, we become another one than its owner."""
    if os.geteuid() == 0:
        os.chown(path, OTHER, OTHER)
    else:
        own = os.geteuid()
        patch.setattr(os, "geteuid", lambda: own + 1)


@contextmanager
def as_another(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connect as another user: where we may not become one, everybody else is another one afterwards."""
    if os.geteuid() != 0:
        own = os.geteuid()
        yield
        patch.setattr(os, "geteuid", lambda: own + 1)
        return
    os.seteuid(OTHER)
    try:
        yield
    finally:
        os.seteuid(0)
