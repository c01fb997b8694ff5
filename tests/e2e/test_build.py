"""A running node is the build that this test run is for, and reports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gateway import Patgate

LIBRARY = "patgate__mypyc"
"""The shared library behind the compiled modules (setup.py names it)."""


@pytest.fixture
def compiled(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--compiled"))


def test_every_worker_runs_the_build_under_test(gateway: Patgate, compiled: bool) -> None:
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in gateway.all_workers()]
    assert [LIBRARY in text for text in maps] == [compiled, compiled]


def test_the_start_line_of_the_log_says_whether_the_gateway_is_compiled(gateway: Patgate, compiled: bool) -> None:
    [started] = [record for record in gateway.records() if record.get("event") == "serving"]
    assert started["compiled"] is compiled
