"""Rendering results as Markdown: one part for the terminal, or docs/benchmarks.md from every part's last result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.report.figures import Better, Figure, Part
from bench.report.results import Result
from bench.system.interpreter import YES

DOCUMENT: Final = Path(__file__).parent.parent.parent / "docs" / "benchmarks.md"

_PREFACE: Final = """\
# Benchmarks

This document is written by the commands that measure (`bench/report/`, from `bench/results.json`); nothing here is
edited by hand. The docstrings in `bench/` describe what is measured, and how.

    make bench                            # every part but those that take many minutes, about ten minutes
    .venv-speed/bin/python -m bench cpu   # one part; --write puts it into this document, --help shows the rest
    make bench AGAINST=<commit> BENCH_ARGS="cpu --peers patgate --rounds 20"  # beside another commit, only printed

It measures with the system's interpreter, which is built with profile-guided optimisation, in an environment of its own
(`.venv-speed`; `SPEED_PYTHON` names another). Figures of an interpreter without it are not written here.

A figure is the median of its rounds, with the smallest and the largest in parentheses.
"""


def table_text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is text, the others are right-aligned."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """A number with three significant digits, whole from a hundred on."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def figures_text(figures: Sequence[Figure]) -> str:
    """The figures beside their bounds and aims, as a table."""
    rows = []
    for figure in figures:
        sign = "≤" if figure.better is Better.LOWER else "≥"
        limits = [f"{sign} {number(at)}{figure.unit}" if at is not None else "" for at in (figure.bound, figure.aim)]
        held = figure.spread
        span = f" ({number(held.low)}–{number(held.high)})" if held.low != held.high else ""
        rows.append([figure.what, f"{number(held.median)}{figure.unit}{span}", *limits, figure.verdict.value])
    return table_text(["figure", "measured", "bound", "aim", "verdict"], rows)


def part_text(part: Part) -> str:
    """One part: its figures, its tables, its notes."""
    blocks = [figures_text(part.figures)] if part.figures else []
    return "\n\n".join([*blocks, *_details(part)])


def _details(part: Part) -> list[str]:
    blocks = [table_text(table.head, table.rows) for table in part.tables]
    return [*blocks, "\n".join(f"- {note}" for note in part.notes)] if part.notes else blocks


def machine_text(facts: Mapping[str, str]) -> str:
    """The machine and the versions, as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def warning(parts: Sequence[str], facts: Mapping[str, str]) -> str:
    """A warning above the figures of these parts if their interpreter was not optimised; otherwise empty."""
    if facts.get("Python optimised") == YES:
        return ""
    names = ", ".join(f"`{name}`" for name in parts)
    return (
        f"**Not what an operator sees: {names} ran on an interpreter built without optimisation "
        f"({facts.get('Python', 'unknown')}), which runs our code up to one and a half times as long.**"
    )


def document_text(every: Mapping[str, Result], titles: Mapping[str, str]) -> str:
    """The whole document: all figures, then each part, then the machines."""
    held = {name: every[name] for name in titles if name in every}
    blocks = [_PREFACE.rstrip()]
    slow: dict[str, list[str]] = {}
    for name, result in held.items():
        if result.machine.get("Python optimised") != YES:
            slow.setdefault(result.machine.get("Python", ""), []).append(name)
    blocks += [warning(names, held[names[0]].machine) for names in slow.values()]
    blocks.append(figures_text([figure for result in held.values() for figure in result.part.figures]))
    machines: dict[str, list[str]] = {}
    for name, result in held.items():
        blocks += [f"## {titles[name]}", *_details(result.part)]
        machines.setdefault(machine_text(result.machine), []).append(f"`{name}` ({result.taken})")
    blocks.append("## Machines and versions")
    for machine, parts in machines.items():
        blocks += [f"{', '.join(parts)}:", machine]
    return "\n\n".join(blocks) + "\n"


def write(every: Mapping[str, Result], titles: Mapping[str, str], document: Path = DOCUMENT) -> None:
    """Write the document."""
    document.parent.mkdir(exist_ok=True)
    document.write_text(document_text(every, titles))
