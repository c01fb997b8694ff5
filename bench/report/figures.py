"""Types of a measurement: ``Run`` (parameters), ``Part`` (result), ``Figure`` (a value with its bound and aim).

A scenario measures with ``def measure(run: Run) -> Part`` and has one line in ``__main__.SUBCOMMANDS``. A ``Part``
holds the promised figures, each with its bound and its aim, and the tables and notes that let a reader judge them.
Everything is plain data: ``results`` stores it as JSON and ``markdown`` renders it.
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
    """The direction in which a figure improves."""

    LOWER = "lower"
    HIGHER = "higher"


class Verdict(StrEnum):
    """How a figure compares with its bound and its aim."""

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
    """The spread of at least one value."""
    return Spread(median=median(values), low=min(values), high=max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed (nearest rank); 0 < share <= 1."""
    return sorted(values)[max(1, ceil(len(values) * share)) - 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One promised figure: the median of its rounds is compared with the bound and the aim."""

    what: str
    spread: Spread
    bound: float | None = None
    aim: float | None = None
    unit: str = ""
    """Printed after the number, with a leading space if it needs one: "%", " MiB", "" for ratios."""
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
    """The result of one subcommand."""

    figures: tuple[Figure, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Parameters of a measurement. ``None`` means the scenario's own default, which the published figures use."""

    directory: Path
    """A private, empty directory; removed afterwards."""
    cores: Cores
    rounds: int | None = None
    seconds: float | None = None
    """Duration of the load on one peer in one round."""
    tokens: int | None = None
    entries: int | None = None
    """Number of users, connections or requests, by scenario."""
    events: int | None = None
    """Events in the audit log."""
    peers: tuple[str, ...] | None = None
    against: Path | None = None
    """Another checkout of patgate, built, whose cost is compared with ours."""
