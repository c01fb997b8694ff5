"""What every figure module takes and gives back.

A module measures with ``def measure(run: Run) -> Part`` and has one line in ``__main__.SUBCOMMANDS``. A ``Part`` holds
the figures that were promised, each with its bound and its aim, and the table and notes that let a reader judge them.
Everything is plain data: ``results`` keeps it as JSON and ``report`` renders it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from pathlib import Path
from statistics import median

from bench.system.machine import Cores


class Better(StrEnum):
    """In which direction a figure improves."""

    LOWER = "lower"
    HIGHER = "higher"


class Verdict(StrEnum):
    """A figure beside what was promised of it."""

    AIM = "aim met"
    BOUND = "bound met"
    MISSED = "**missed**"
    NONE = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The median of the rounds, between the smallest and the largest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(median=median(values), low=min(values), high=max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed (nearest rank); 0 < share <= 1."""
    return sorted(values)[max(1, ceil(len(values) * share)) - 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One promised figure: the median of its rounds is what is compared with the bound and the aim."""

    what: str
    spread: Spread
    bound: float | None = None
    aim: float | None = None
    unit: str = ""
    """Stands behind the number, with a space of its own where it needs one: "%", " MiB", "" for ratios."""
    better: Better = Better.LOWER

    @property
    def value(self) -> float:
        return self.spread.median

    @property
    def verdict(self) -> Verdict:
        if self.bound is None:
            return Verdict.NONE
        if not self._within(self.bound):
            return Verdict.MISSED
        return Verdict.AIM if self.aim is not None and self._within(self.aim) else Verdict.BOUND

    def _within(self, limit: float) -> bool:
        return self.value <= limit if self.better is Better.LOWER else self.value >= limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Cells as they are printed; each row has as many as the head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one subcommand found."""

    figures: tuple[Figure, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Where and how long to measure. None stands for the module's own default, which the published figures have."""

    directory: Path
    """Empty and private to this part; removed afterwards."""
    cores: Cores
    rounds: int | None = None
    seconds: float | None = None
    """How long one peer is driven in one round."""
    tokens: int | None = None
    entries: int | None = None
    """How many of whatever the part counts: users, connections, requests."""
    events: int | None = None
    """Events in the audit log."""
    peers: tuple[str, ...] | None = None
    against: Path | None = None
    """Another checkout of patgate, built, whose cost is set beside ours."""
