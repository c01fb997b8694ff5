"""Simulates another user of the system, as far as this process has the permission to become one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OTHER = 65534
"""The user id of ``nobody``, or any other user but ours."""


def give_away(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a file belong to another user: if we may not change its owner, our own user id is patched instead."""
    if os.geteuid() == 0:
        os.chown(path, OTHER, OTHER)
    else:
        own = os.geteuid()
        patch.setattr(os, "geteuid", lambda: own + 1)


@contextmanager
def as_another(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connect as another user: if we may not become one, our own user id is patched after the connection instead."""
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
