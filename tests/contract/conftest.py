"""Every test of the contract runs over each database."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def over_each_database(dialect: str) -> str:
    return dialect
