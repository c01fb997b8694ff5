"""In which order the files of a run begin where its tests are shared out among workers: the longest first.

A worker is given a whole file at a time. One that takes two minutes and begins last keeps one worker busy while the
others have nothing left. What is not named here takes some seconds and follows in the order of the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LONGEST: Final = ("tests/e2e/test_docs.py",)
"""Measured, not ordered to the second: move what has become much longer or shorter."""

_PLACE: Final[Mapping[str, int]] = {name: place for place, name in enumerate(LONGEST)}


def place(test: str) -> int:
    """Where the file of a test (its node id) stands; equal for all files that are not named, which keep their order."""
    return _PLACE.get(test.partition("::")[0], len(LONGEST))
