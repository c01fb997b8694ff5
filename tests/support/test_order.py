"""The order in which a run that is shared out begins its files."""

from __future__ import annotations

from tests.support.builds import ROOT
from tests.support.order import LONGEST, place


def test_every_file_that_begins_early_exists_and_is_named_once() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_the_longest_files_begin_first_and_all_others_keep_their_order() -> None:
    others = ["tests/contract/test_a.py::test", "tests/zoo/test_z.py::test[1]", "tests/contract/test_b.py::test"]
    first, second = (f"{name}::test_anything" for name in LONGEST[:2])
    assert sorted([others[0], second, *others[1:], first], key=place) == [first, second, *others]
