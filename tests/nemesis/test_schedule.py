"""The nemesis: each kind of fault once and then by chance, never two of one target, and all ended when it leaves."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.nemesis.faults import Fault, Maker
from tests.nemesis.nemesis import Nemesis
from tests.support.process import wait_until


class Noted(Fault):
    """A fault of nothing, which notes how many of its target are under way."""

    def __init__(self, kind: str, target: str, seconds: float, active: Counter[str]) -> None:
        self.kind, self.target, self.seconds = kind, target, seconds
        self._active = active

    def begin(self) -> None:
        self._active[self.target] += 1
        assert self._active[self.target] == 1

    def end(self) -> None:
        self._active[self.target] -= 1


class Broken(Noted):
    def begin(self) -> None:
        raise AssertionError("this fault cannot begin")


def makers(active: Counter[str], *, seconds: float = 0.01) -> dict[str, Maker]:
    def made(number: int) -> Maker:
        return lambda chance: Noted(f"kind {number}", f"target {number % 2}", seconds, active)

    return {f"kind {number}": made(number) for number in range(6)}


def test_each_kind_comes_once_before_chance_decides() -> None:
    active: Counter[str] = Counter()
    with Nemesis(makers(active), (), seed=3, gap=(0.0, 0.001)) as nemesis:
        wait_until(lambda: nemesis.counts.total() >= 20, "twenty faults")
        assert nemesis.all_kinds_seen
    assert active.total() == 0
    assert len(nemesis.log) == nemesis.counts.total()
    assert len({what for _, _, what in sorted(nemesis.log)[:6]}) == 6
    assert all(begin < end for begin, end, _ in nemesis.log)


def test_what_is_under_way_ends_with_it() -> None:
    active: Counter[str] = Counter()
    with Nemesis(makers(active, seconds=3600.0), (), seed=1, at_once=2, gap=(0.0, 0.001)) as nemesis:
        wait_until(lambda: active.total() == 2, "a fault of each target")
    assert active.total() == 0
    assert nemesis.counts.total() == 2


def test_a_fault_that_fails_fails_the_run() -> None:
    def broken(_chance: random.Random) -> Fault:
        return Broken("broken", "nothing", 0.0, Counter())

    with (
        pytest.raises(AssertionError, match="cannot begin"),
        Nemesis({"broken": broken}, (), seed=1, gap=(0.0, 0.001)) as nemesis,
    ):
        wait_until(lambda: nemesis.failed(), "a failure")
