"""Plotting CPU per request for README.md: an SVG with one bar per peer, from the last result of ``cpu``.

It has its own background and colours for light and dark pages, so that it is legible on both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from bench.report.figures import Verdict
from bench.report.markdown import number
from bench.report.results import Result
from bench.scenarios.cpu_per_request import OURS, REFERENCE

PICTURE: Final = Path(__file__).parent.parent.parent / "docs" / "cpu-per-request.svg"

#: Colours by class: on light pages and on dark ones. The background of text is "panel".
COLOURS: Final[Mapping[str, tuple[str, str]]] = {
    "panel": ("#ffffff", "#0d1117"),
    "frame": ("#d1d9e0", "#3d444d"),
    "text": ("#1f2328", "#f0f6fc"),
    "quiet": ("#59636e", "#9198a1"),
    "ours": ("#0969da", "#4493f8"),
    "peer": ("#818b98", "#656c76"),
    "span": ("#1f2328", "#f0f6fc"),
}
TEXTS: Final = ("text", "quiet")

_WIDTH: Final = 760
_LEFT: Final = 100
_BAR: Final = 430
"""Pixels of the longest bar; the rest is for the label after it."""
_TOP: Final = 74
_STEP: Final = 34
_HEIGHT: Final = 20
_COST: Final = re.compile(r"([\d.,]+)(?: \(([\d.,]+)–([\d.,]+)\))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """A peer and its CPU per request in microseconds: the median of the rounds, the smallest and the largest."""

    name: str
    median: float
    low: float
    high: float


def costs(result: Result) -> list[Cost]:
    """The cost of each peer, the cheapest first."""
    (table,) = result.part.tables
    column = table.head.index("CPU per request, µs")
    found = []
    for row in table.rows:
        cell = _COST.fullmatch(row[column])
        if cell is None:
            raise ValueError(f"no cost: {row[column]}")
        median, low, high = (float((group or cell[1]).replace(",", "")) for group in cell.groups())
        found.append(Cost(name=row[0], median=median, low=low, high=high))
    return sorted(found, key=lambda cost: cost.median)


def picture(result: Result) -> str:
    """The plot as SVG text."""
    every = costs(result)
    scale = _BAR / max(cost.high for cost in every)
    height = _TOP + _STEP * len(every) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title">',
        f'<title id="title">CPU per request: {escape(_sentence(every))}</title>',
        f"<style>\n{_style()}\n</style>",
        f'<rect class="panel frame" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        '<text class="text" x="20" y="32" font-size="17" font-weight="600">CPU per authenticated request, µs</text>',
        '<text class="quiet" x="20" y="54" font-size="13">less is better; one worker on one core, '
        "median and range of interleaved rounds</text>",
        *(line for place, cost in enumerate(every) for line in _bar(cost, _TOP + _STEP * place, scale, result)),
        f'<text class="quiet" x="20" y="{height - 18}" font-size="13">{escape(_footer(result))}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def write(every: Mapping[str, Result], file: Path = PICTURE) -> None:
    """Write the plot, if ``cpu`` has a result."""
    if "cpu" in every:
        file.write_text(picture(every["cpu"]))


def _style() -> str:
    def rules(scheme: int) -> list[str]:
        fills = [f".{name} {{ fill: {COLOURS[name][scheme]} }}" for name in ("panel", *TEXTS, "ours", "peer")]
        strokes = [f".{name} {{ stroke: {COLOURS[name][scheme]} }}" for name in ("frame", "span")]
        return [*fills, *strokes]

    dark = " ".join(rules(1))
    fonts = "text { font-family: system-ui, sans-serif }"
    return "\n".join([fonts, *rules(0), f"@media (prefers-color-scheme: dark) {{ {dark} }}"])


def _bar(cost: Cost, top: int, scale: float, result: Result) -> list[str]:
    kind = "ours" if cost.name == OURS else "peer"
    weight = ' font-weight="600"' if cost.name == OURS else ""
    middle, base = top + _HEIGHT / 2, top + 15
    low, high, end = (_LEFT + value * scale for value in (cost.low, cost.high, cost.median))
    return [
        f'<text class="text" x="{_LEFT - 12}" y="{base}" font-size="14" text-anchor="end"{weight}>'
        f"{escape(cost.name)}</text>",
        f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{end - _LEFT:.1f}" height="{_HEIGHT}" rx="2"/>',
        f'<line class="span" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>',
        f'<text class="text" x="{high + 10:.1f}" y="{base}" font-size="14"{weight}>'
        f"{escape(_label(cost, result))}</text>",
    ]


def _label(cost: Cost, result: Result) -> str:
    """The number, and for patgate its ratio to the reference with the bound."""
    if cost.name != OURS:
        return number(cost.median)
    for figure in result.part.figures:
        if figure.what.endswith(f"ratio to {REFERENCE}") and figure.bound is not None:
            verdict = "missed" if figure.verdict is Verdict.MISSED else "met"
            ratio = f"{number(figure.value)} × {REFERENCE}; our bound of {number(figure.bound)} is {verdict}"
            return f"{number(cost.median)} = {ratio}"
    return number(cost.median)


def _sentence(every: Sequence[Cost]) -> str:
    return ", ".join(f"{cost.name} {number(cost.median)} µs" for cost in every)


def _footer(result: Result) -> str:
    return f"measured {result.taken} by make bench; {result.machine['processor']}"
