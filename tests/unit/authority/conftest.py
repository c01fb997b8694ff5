"""A data directory with a short path, and settings over it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.settings.model import Argon2, Settings


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not tmp_path: the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        yield Path(name)


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    return Settings(
        brand="acme",
        data_dir=data_dir,
        roles={"editor": ("things:*",), "viewer": ("things:read",)},
        argon2=Argon2(memory=64 * 1024, iterations=1),
    )
