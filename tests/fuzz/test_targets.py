"""Runs every fuzz target on its seeds and on mutations of them; ``make fuzz`` does it longer and guided by coverage."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.table import TARGETS
from tests.fuzz.targets.target import Target

#: Targets that use a whole gateway take some milliseconds for each input.
SLOW = {"connection": 60, "answer": 60}
EXAMPLES = 250


@st.composite
def mutated(draw: st.DrawFn, target: Target) -> bytes:
    """A seed, or two that were cut and joined, with a few pieces inserted, removed or overwritten.

    Half of these changes are at the ends of lines, because few pieces have a meaning within a line.
    """
    data = draw(st.sampled_from(target.seeds))
    if draw(st.integers(0, 3)) == 0:
        other = draw(st.sampled_from(target.seeds))
        data = data[: draw(st.integers(0, len(data)))] + other[draw(st.integers(0, len(other))) :]
    for _ in range(draw(st.integers(1, 4))):
        ends = [found.start() for found in re.finditer(b"\r\n", data)]
        at_end = bool(ends) and draw(st.booleans())
        at = draw(st.sampled_from(ends) if at_end else st.integers(0, len(data)))
        put = draw(st.sampled_from(target.pieces) | st.binary(max_size=3))
        data = data[:at] + put + data[at + draw(st.sampled_from((0, 0, 1, 2, len(put)))) :]
    return data[: target.longest]


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_passes_for_its_seeds(name: str) -> None:
    for data in TARGETS[name].seeds:
        TARGETS[name].run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_passes_for_mutations_of_its_seeds(name: str) -> None:
    target = TARGETS[name]

    @given(mutated(target))
    @settings(
        max_examples=SLOW.get(name, EXAMPLES),
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def holds(data: bytes) -> None:
        target.run(data)

    holds()
