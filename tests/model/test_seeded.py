"""Each step of the protocol is needed: the model without it breaks the invariant that the step is for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.bugs import Bug
from tests.model.catalogue import SEEDED
from tests.model.explore import explore


def test_every_seeded_bug_has_a_configuration() -> None:
    assert set(SEEDED) == set(Bug)


@pytest.mark.parametrize("bug", Bug, ids=lambda bug: bug.name.lower())
def test_a_seeded_bug_is_found(bug: Bug) -> None:
    """The trace is printed: ``pytest -rP`` shows it."""
    seeded = SEEDED[bug]
    found = explore(replace(seeded.model, bugs=frozenset({bug})), aim=seeded.breaks, limit=120_000)
    print(f"rule {bug.rule}: {bug.words}\n{found}")
    assert found.broken is seeded.breaks
