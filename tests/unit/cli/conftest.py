"""A desk to run commands at."""

from pathlib import Path

import pytest

from tests.unit.cli.running import CONFIGURATION, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A fresh directory with a good configuration."""
    (tmp_path / "patgate.yaml").write_text(CONFIGURATION)
    return Desk(directory=tmp_path)
