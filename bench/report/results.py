"""Storing the last result of every part, in bench/results.json: saving one leaves the others."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.report.figures import Better, Figure, Part, Spread, Table

FILE: Final = Path(__file__).parent.parent / "results.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A part with its date (YYYY-MM-DD, UTC) and the machine."""

    taken: str
    machine: Mapping[str, str]
    part: Part


def _figure(held: Mapping[str, Any]) -> Figure:
    return Figure(**{**held, "spread": Spread(**held["spread"]), "better": Better(held["better"])})


def _part(held: Mapping[str, Any]) -> Part:
    return Part(
        figures=tuple(_figure(figure) for figure in held["figures"]),
        tables=tuple(
            Table(head=tuple(table["head"]), rows=tuple(tuple(row) for row in table["rows"]))
            for table in held["tables"]
        ),
        notes=tuple(held["notes"]),
    )


def load(file: Path = FILE) -> dict[str, Result]:
    """The results by the name of the part; empty without a file."""
    if not file.exists():
        return {}
    held: dict[str, Any] = json.loads(file.read_text())
    return {
        name: Result(taken=result["taken"], machine=result["machine"], part=_part(result["part"]))
        for name, result in held.items()
    }


def save(name: str, result: Result, file: Path = FILE) -> dict[str, Result]:
    """Save the result of one part, and return all results."""
    every = {**load(file), name: result}
    file.write_text(json.dumps({name: asdict(one) for name, one in sorted(every.items())}, indent=1) + "\n")
    return every
