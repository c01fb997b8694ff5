"""The protocol breaks no invariant, in any state of any configuration."""

from __future__ import annotations

import pytest

from tests.model.catalogue import SHORT
from tests.model.explore import explore


@pytest.mark.parametrize("name", SHORT)
def test_the_protocol_breaks_nothing(name: str) -> None:
    found = explore(SHORT[name])
    print(found)
    assert found.broken is None, str(found)
