"""Tests of the order in which a distributed run begins its files."""

from __future__ import annotations

from itertools import chain

from tests.support import turns
from tests.support.builds import ROOT
from tests.support.order import LONGEST, SHARING, TOGETHER, place


def test_every_file_that_begins_early_exists_and_is_named_once() -> None:
    named = [*LONGEST, *TOGETHER, *chain.from_iterable(SHARING)]
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert len(set(named)) == len(named)


def test_the_longest_files_begin_first_and_all_others_keep_their_order() -> None:
    others = ["tests/contract/test_a.py::test", "tests/zoo/test_z.py::test[1]", "tests/contract/test_b.py::test"]
    first, second = (f"{name}::test_anything" for name in LONGEST[:2])
    assert sorted([others[0], second, *others[1:], first], key=place) == [first, second, *others]


def test_files_that_share_a_gateway_follow_each_other() -> None:
    for group in SHARING:
        rest, number = place(group[0])
        assert [place(f"{name}::test") for name in group] == [(rest, number + later) for later in range(len(group))]


def test_the_tests_that_run_alone_are_one_row_before_all_others() -> None:
    """Each row of them begins with a wait for every test that is running."""
    last, first = f"{TOGETHER[-1]}::test_alone", f"{TOGETHER[0]}::test"
    longest = f"{LONGEST[0]}::test"
    together = sorted([longest, first, last], key=lambda name: place(name, alone=name == last))
    assert together == [last, first, longest]


def test_one_worker_has_every_test_that_runs_alone() -> None:
    """Two workers with such tests would wait for each other, and all the others with them."""
    mark = f"pytest.mark.{turns.MARK}"
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py") if mark in path.read_text()}
    assert found - {"tests/support/test_plugin.py"} == {*TOGETHER}
