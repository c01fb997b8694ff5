"""Finds unexpected errors in gateway logs: a line of level error, or a traceback, that no test expects.

The log of every gateway that a test starts is read when the run ends. A test that causes such lines declares their
events (``expect``, or ``Patgate.expects``), for that log alone.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What Python itself prints for an unhandled exception: never expected.
UNPREPARED = re.compile(r"Traceback \(most recent call last\)|Exception ignored in|exception was never retrieved")
#: A line in the human-readable format: time, level, event, fields.
TEXT = re.compile(r"\S+Z ERROR ((?:(?! \w+=).)*)")


@dataclass(slots=True)
class Log:
    """The log of one gateway: the test that started it, and the expected events of level error."""

    test: str
    expected: set[str] = field(default_factory=set)
    begins: int = 0
    """The offset of the first line that has not been checked yet."""


LOGS: dict[Path, Log] = {}

#: Unexpected errors from the logs that were closed.
FOUND: list[str] = []


def watch(log: Path) -> None:
    """Register this file to be checked at the end of the run; it need not exist yet."""
    LOGS.setdefault(log, Log(test=_current_test()))


def close(log: Path) -> None:
    """Check this file now; later lines are checked separately, without the events expected so far."""
    text = _whole_lines(log)
    FOUND.extend(_unexpected_in(log, text))
    LOGS[log] = Log(test=_current_test(), begins=LOGS[log].begins + len(text))


def expect(log: Path, *events: str) -> None:
    """Allow these events in this log."""
    watch(log)
    LOGS[log].expected.update(events)


def unexpected() -> list[str]:
    """Each unexpected error line, once for each log and event, with the test that started the log."""
    return [*FOUND, *(line for path in LOGS for line in _unexpected_in(path, _rest(path)))]


def _rest(path: Path) -> bytes:
    """What has not been checked yet."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(LOGS[path].begins)
        return file.read()


def _whole_lines(path: Path) -> bytes:
    """The same without a last line that is still being written."""
    text = _rest(path)
    return text[: text.rfind(b"\n") + 1]


def _unexpected_in(path: Path, text: bytes) -> list[str]:
    log = LOGS[path]
    found: dict[str, str] = {}
    for line in text.decode(errors="replace").splitlines():
        event = error_in(line)
        if event is not None and event not in log.expected:
            found.setdefault(event, f"{log.test}: {line[:2000]}")
    return list(found.values())


def _current_test() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "?").partition(" ")[0]


def error_in(line: str) -> str | None:
    """The event of a line of level error, or ``traceback``; None for all other lines."""
    if line.startswith("{"):
        try:
            record: Any = json.loads(line)
        except ValueError:
            return None  # cut off when the process was killed
        return str(record.get("event")) if record.get("level") == "error" else None
    text = TEXT.match(line)
    if text:
        return text[1]
    return "traceback" if UNPREPARED.search(line) else None
