"""Fixtures: directories in which commands run."""

from pathlib import Path

import pytest

from tests.support.stores import migrated
from tests.unit.cli.running import CONFIGURATION, Desk


@pytest.fixture
def bare(tmp_path: Path) -> Desk:
    """A new directory with a valid configuration and nothing else."""
    (tmp_path / "patgate.yaml").write_text(CONFIGURATION)
    return Desk(directory=tmp_path)


@pytest.fixture
def desk(bare: Desk) -> Desk:
    """A directory with a configuration and an empty store."""
    bare.data.mkdir(0o700)
    migrated(bare.data, key=True)
    return bare
