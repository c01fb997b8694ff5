"""What no gateway under test may have logged: a line of level error, or a traceback, that no test expects.

Every log of a gateway that a test starts is read when the run ends. A test that causes such lines names their events
(``expect``, or ``Patgate.expects``), for that log alone.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What Python itself prints where nobody was prepared: never expected.
UNPREPARED = re.compile(r"Traceback \(most recent call last\)|Exception ignored in|exception was never retrieved")
#: A line for people: time, level, event, fields.
TEXT = re.compile(r"\S+Z ERROR ((?:(?! \w+=).)*)")


@dataclass(slots=True)
class Log:
    """The log of one gateway: which test started it, and the events of level error that are expected in it."""

    test: str
    expected: set[str] = field(default_factory=set)
    begins: int = 0
    """Where the lines begin that are not judged yet."""


LOGS: dict[Path, Log] = {}

#: What was found in the logs that were closed.
FOUND: list[str] = []


def watch(log: Path) -> None:
    """Judge this file at the end; it may not be there yet."""
    LOGS.setdefault(log, Log(test=_current_test()))


def close(log: Path) -> None:
    """Judge this file now; what follows in it is judged for itself, and none of it is expected so far."""
    FOUND.extend(_unexpected_in(log))
    LOGS[log] = Log(test=_current_test(), begins=log.stat().st_size)


def expect(log: Path, *events: str) -> None:
    """These events may be in this log."""
    watch(log)
    LOGS[log].expected.update(events)


def unexpected() -> list[str]:
    """Each line of level error that no test expects, once for each log and event, with the test that began the log."""
    return [*FOUND, *(line for path in LOGS for line in _unexpected_in(path))]


def _unexpected_in(path: Path) -> list[str]:
    log = LOGS[path]
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(log.begins)
        lines = file.read().decode(errors="replace").splitlines()
    found: dict[str, str] = {}
    for line in lines:
        event = error_in(line)
        if event is not None and event not in log.expected:
            found.setdefault(event, f"{log.test}: {line[:2000]}")
    return list(found.values())


def _current_test() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "?").partition(" ")[0]


def error_in(line: str) -> str | None:
    """The event of a line of level error, or ``traceback``; None of all others."""
    if line.startswith("{"):
        try:
            record: Any = json.loads(line)
        except ValueError:
            return None  # cut off by a death
        return str(record.get("event")) if record.get("level") == "error" else None
    text = TEXT.match(line)
    if text:
        return text[1]
    return "traceback" if UNPREPARED.search(line) else None
