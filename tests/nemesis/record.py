"""The files in which a client records what it saw: decisions in columns of numbers, changes as lines of JSON.

All times are nanoseconds of CLOCK_MONOTONIC, which all processes of one machine share, also those in other network
namespaces.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.history.checker import Change, Decision, Outcome

ALLOWED: Final = 1
DENIED: Final = 0
_COLUMNS: Final = (("register", "I"), ("node", "B"), ("verdict", "B"), ("start", "q"), ("end", "q"))


class Decisions:
    """Verdicts in the order in which they arrived: 22 bytes each."""

    def __init__(self) -> None:
        self.register, self.node, self.verdict, self.start, self.end = (array(kind) for _, kind in _COLUMNS)

    def __len__(self) -> int:
        return len(self.end)

    def add(self, register: int, node: int, allowed: bool, start: int, end: int) -> None:
        self.register.append(register)
        self.node.append(node)
        self.verdict.append(ALLOWED if allowed else DENIED)
        self.start.append(start)
        self.end.append(end)

    def allowed(self) -> Iterator[int]:
        """The node of each allow."""
        return (node for node, verdict in zip(self.node, self.verdict, strict=True) if verdict == ALLOWED)

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            file.write(len(self).to_bytes(8, sys.byteorder))
            for name, _ in _COLUMNS:
                getattr(self, name).tofile(file)

    @classmethod
    def read(cls, path: Path) -> Decisions:
        found = cls()
        with path.open("rb") as file:
            count = int.from_bytes(file.read(8), sys.byteorder)
            for name, _ in _COLUMNS:
                getattr(found, name).fromfile(file, count)
        return found


@dataclass(kw_only=True, slots=True)
class Recorded:
    """One attempt at a change, as a client made it."""

    kind: str
    """Such as ``revoke``."""
    registers: list[str]
    """All whose verdict depends on it."""
    allows: bool
    cause: str
    start: int
    end: int
    outcome: Outcome
    node: int
    """The node that was asked for it."""
    action: str
    """The action of the audit event that it leaves."""
    target: str
    """The id of the token or user that the event is about."""

    def change(self) -> Change:
        return Change(
            tokens=tuple(self.registers), allows=self.allows, cause=self.cause, start=self.start,
            end=self.end, outcome=self.outcome, name=f"{self.kind} at n{self.node}",
        )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Record:
    """Everything that one client recorded."""

    registers: list[str] = field(default_factory=list)
    """Their names by number."""
    unborn: list[tuple[str, str]] = field(default_factory=list)
    """Registers that a change creates: ``denied_at_first`` of the checker."""
    changes: list[Recorded] = field(default_factory=list)
    decisions: Decisions = field(default_factory=Decisions)
    other: dict[str, int] = field(default_factory=dict)
    """How many answers were no verdict, by ``node status reason``."""
    problems: list[str] = field(default_factory=list)
    """What a client cannot explain, such as a change that was refused for a reason of which it knows nothing."""

    def write(self, directory: Path, name: str) -> None:
        self.decisions.write(directory / f"{name}.decisions")
        document = {
            "registers": self.registers, "unborn": self.unborn, "other": self.other, "problems": self.problems,
            "changes": [asdict(change) for change in self.changes],
        }  # fmt: skip
        (directory / f"{name}.json").write_text(json.dumps(document))

    @classmethod
    def read(cls, directory: Path, name: str) -> Record:
        document: dict[str, Any] = json.loads((directory / f"{name}.json").read_text())
        return cls(
            registers=document["registers"],
            unborn=[(register, cause) for register, cause in document["unborn"]],
            changes=[Recorded(**each | {"outcome": Outcome(each["outcome"])}) for each in document["changes"]],
            decisions=Decisions.read(directory / f"{name}.decisions"),
            other=document["other"],
            problems=document["problems"],
        )

    def judged(self) -> Iterator[Decision]:
        """The decisions as the checker takes them."""
        names, found = self.registers, self.decisions
        nodes = [f"n{number}" for number in range(256)]
        for register, node, verdict, start, end in zip(
            found.register, found.node, found.verdict, found.start, found.end, strict=True
        ):
            yield Decision(token=names[register], node=nodes[node], allowed=verdict == ALLOWED, start=start, end=end)
