"""Tests of the log check: it sees each form of an error, and an expected event is expected in one log only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import errors

ERROR = '{"time":"2026-11-29T00:00:00.000Z","level":"error","event":"defect","what":"a task failed"}\n'
LINES = {
    "JSON": (ERROR, "defect"),
    "text": ('2026-11-29T00:00:00.000Z ERROR child ended process="supervisor" pid=1\n', "child ended"),
    "text without fields": ("2026-11-29T00:00:00.000Z ERROR child ended\n", "child ended"),
    "a traceback": ("Traceback (most recent call last):\n", "traceback"),
    "an exception in a destructor": ("Exception ignored in: <function f at 0x1>\n", "traceback"),
    "a warning": (ERROR.replace("error", "warning"), None),
    "a warning as text": ("2026-11-29T00:00:00.000Z WARNING ERROR child ended\n", None),
    "half a line": (ERROR[:40], None),
    "an access line": ('192.0.2.7 - - [22/Nov/2026:00:42:09 +0000] "GET /ERROR HTTP/1.1" 200 1 "-" "-"\n', None),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "LOGS", {})
    monkeypatch.setattr(errors, "FOUND", [])


@pytest.mark.parametrize(("line", "event"), LINES.values(), ids=LINES)
def test_errors_are_told_from_other_lines(line: str, event: str | None, tmp_path: Path) -> None:
    log = tmp_path / "patgate.log"
    log.write_text(line * 3)
    errors.watch(log)
    assert errors.error_in(line.rstrip("\n")) == event
    assert len(errors.unexpected()) == (event is not None)


def test_an_event_is_expected_in_one_log_and_no_other_event_with_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    first.write_text(ERROR + ERROR.replace("defect", "child ended"))
    second.write_text(ERROR)
    errors.expect(first, "defect")
    errors.watch(second)
    assert [("child ended" in line, "defect" in line) for line in errors.unexpected()] == [(True, False), (False, True)]
    errors.expect(first, "child ended")
    errors.expect(second, "defect")
    assert errors.unexpected() == []


def test_a_log_that_was_never_written_has_nothing_in_it(tmp_path: Path) -> None:
    errors.watch(tmp_path / "patgate.log")
    assert errors.unexpected() == []


def test_a_log_that_is_closed_is_judged_then_and_what_follows_is_judged_for_itself(tmp_path: Path) -> None:
    log = tmp_path / "patgate.log"
    errors.expect(log, "defect")
    log.write_text(ERROR + ERROR.replace("defect", "child ended"))
    errors.close(log)
    assert ["child ended" in line for line in errors.unexpected()] == [True]
    with log.open("a") as file:
        file.write(ERROR)
    assert ["child ended" in line for line in errors.unexpected()] == [True, False]


def test_a_line_that_is_half_written_when_the_log_is_closed_is_judged_when_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "patgate.log"
    errors.watch(log)
    log.write_text(ERROR.replace("defect", "child ended") + ERROR[:40])
    errors.close(log)
    with log.open("a") as file:
        file.write(ERROR[40:])
    assert [("child ended" in line, "defect" in line) for line in errors.unexpected()] == [(True, False), (False, True)]
