"""An authority killed at each write, sync and rename of a change, or whose disk fails there, on SQLite.

No acknowledged change is lost, none is half done, and the audit chain is whole: ``crash_points`` checks that after each
case. ``make test`` takes a sample of the calls; PATGATE_TEST_EVERY_CALL=1, as in ``make soak``, takes each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.crash_points import ACKNOWLEDGED, KILL, NONE, NOTHING, REFUSED, START, VERBS, WHOLE
from tests.support.strace import CALLS

EVERY_CALL = os.environ.get("PATGATE_TEST_EVERY_CALL", "") == "1"
EIO, ENOSPC = "error=EIO", "error=ENOSPC"
_HOUR = 3600.0


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        yield Path(name)


def order(verb: str, fault: str, every: int, template: str = "closed") -> dict[str, Any]:
    return {"verb": verb, "template": template, "fault": fault, "every": 1 if EVERY_CALL else every}


def disturbed(directory: Path, *orders: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of these orders (``crash_points.main``), of which none has a problem. The first is undisturbed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.crash_points", str(directory), json.dumps(orders)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=_HOUR if EVERY_CALL else 280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [result for result in results if result["problems"]]
    assert not wrong, "\n".join(str(result) for result in wrong)
    return [result for result in results if result["case"]["fault"]]


def hit(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the fault has met: nearly all, because a repeated change makes nearly the same calls."""
    met = [result for result in results if result["call"] is not None]
    assert len(met) >= 0.9 * len(results) > 0
    return met


@pytest.mark.parametrize(
    ("verb", "template", "every"),
    [(verb, "closed", 1 if verb == "role" else 7) for verb in VERBS]
    + [(verb, "full", 9 if verb == "rotate" else 0) for verb in VERBS],
)
def test_a_killed_change_is_stored_whole_or_not_at_all(directory: Path, verb: str, template: str, every: int) -> None:
    """``full``: the change is also the one after which SQLite copies its log into the database."""
    if not (every or EVERY_CALL):
        every = 1_000
    results = hit(disturbed(directory, order(verb, KILL, every, template)))
    assert {result["said"] for result in results} == {NOTHING}
    for result in results:
        assert result["found"] == (WHOLE if result["complete"] else NONE), result
    assert {result["found"] for result in results} == {WHOLE, NONE}
    files = {Path(result["call"]["path"]).name for result in results}
    assert ("patgate.db" in files) == (template == "full"), "the database is written when the log is full"


@pytest.mark.parametrize("error", [EIO, ENOSPC])
@pytest.mark.parametrize(
    ("verb", "template", "every"),
    [(verb, "closed", 11) for verb in VERBS] + [("rotate", "full", 20)],
)
def test_a_change_whose_disk_fails_is_refused_and_the_next_one_works(
    directory: Path, verb: str, template: str, every: int, error: str
) -> None:
    """A failure once the change is on disk is that of a copy, or of SQLite's own sync of the directory."""
    results = hit(disturbed(directory, order(verb, error, every, template)))
    for result in results:
        stored = result["committed"] or result["call"]["path"] == str(directory / "data")
        expected = (ACKNOWLEDGED, WHOLE) if stored else (REFUSED, NONE)
        assert (result["said"], result["found"]) == expected, result
    assert REFUSED in {result["said"] for result in results}


def test_a_start_after_a_crash_may_crash_and_fail_too(directory: Path) -> None:
    """What the killed authority had stored, the next one has, and no start loses it."""
    results = disturbed(
        directory,
        order(START, KILL, 1, "killed"),
        order(START, KILL, 3, "full"),
        order(START, EIO, 2, "killed"),
        order(START, ENOSPC, 4, "killed"),
    )
    assert {result["call"]["name"] for result in hit(results)} >= {"pwrite64", "fdatasync", "fsync", "ftruncate"}
    failed = [result for result in hit(results) if result["case"]["fault"] == EIO and "sync" in result["call"]["name"]]
    assert failed and {result["said"] for result in failed} == {REFUSED}, "nothing is served from what is not on disk"
