"""A disk failure during a change, then a crash: a refused change is never in force, an acknowledged one always is.

docs/threat-model.md §10: every system call of a commit, every error. Each case is a process that is killed after it.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.contract.failing_commit import ACKNOWLEDGED, REFUSED, UNKNOWN, VERBS
from tests.support.dialects import ON_SQLITE
from tests.support.disk import ALL, Calls, FailingDisk, Written

pytestmark = ON_SQLITE

EVERY = 0
ONCE, FOR_GOOD = 1, 0


def case(
    verb: str,
    calls: Calls,
    *,
    times: int,
    error: int = errno.EIO,
    nth: int = EVERY,
    written: Written = Written.NOTHING,
    restarted: bool = False,
) -> tuple[str, dict[str, int]]:
    what = {"calls": int(calls), "nth": nth, "times": times, "error": error, "written": int(written)}
    return verb, what | {"restarted": int(restarted)}


def crashes(directory: Path, *cases: tuple[str, dict[str, int]]) -> list[str]:
    """The reported outcome of each change. Fails if one was not true."""
    disk = FailingDisk(directory)
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.failing_commit", str(directory), json.dumps(cases)],
        cwd=Path(__file__).parents[2],
        env=os.environ | disk.environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: Sequence[tuple[str, str, int, list[str]]] = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [result for result in results if result[3]]
    assert results and not wrong, f"{wrong}\n{done.stderr[-2000:]}"
    return [said for _, said, _, _ in results]


def test_a_change_whose_sync_fails_once_is_refused_permanently(tmp_path: Path) -> None:
    """Its frames in the log are overwritten before the refusal is reported."""
    said = crashes(tmp_path, *(case(verb, Calls.SYNC, times=ONCE, nth=1) for verb in VERBS))
    assert said == [REFUSED] * len(VERBS)


def test_the_first_change_in_a_restarted_log_is_refused_permanently_too(tmp_path: Path) -> None:
    said = crashes(tmp_path, case("resume", Calls.SYNC, times=ONCE, restarted=True))
    assert said and set(said) == {REFUSED}
    (tmp_path / "for good").mkdir()
    said = crashes(tmp_path / "for good", case("resume", Calls.SYNC, times=FOR_GOOD, restarted=True))
    assert said[0] == REFUSED, "without the log's first lines no part of the change is stored"
    assert said[-1] == UNKNOWN


def test_while_syncs_fail_the_outcome_is_reported_as_unknown_and_nothing_else_is_written(
    tmp_path: Path,
) -> None:
    errors = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    said = crashes(
        tmp_path,
        *(case(verb, Calls.SYNC, times=FOR_GOOD, nth=1) for verb in VERBS),
        *(case("resume", Calls.SYNC, times=FOR_GOOD, nth=1, error=error) for error in errors),
    )
    assert said == [UNKNOWN] * len(said)


def test_the_reported_outcome_is_true_whichever_disk_call_fails_once(tmp_path: Path) -> None:
    said = crashes(tmp_path, case("resume", ALL, times=ONCE))
    assert {REFUSED, ACKNOWLEDGED} <= set(said)
    # Only a failure after the change is stored: the check that the files still exist.
    assert said.count(UNKNOWN) <= 1


def test_a_disk_without_room_refuses_and_leaves_nothing_unknown(tmp_path: Path) -> None:
    said = crashes(tmp_path, case("resume", Calls.WRITE, times=FOR_GOOD, error=errno.ENOSPC, written=Written.HALF))
    # A write that fails after the commit belongs to the checkpoint.
    assert set(said) <= {REFUSED, ACKNOWLEDGED} and said.count(REFUSED) > 5


def test_a_complete_write_that_is_reported_as_failed_is_refused_permanently(tmp_path: Path) -> None:
    said = crashes(tmp_path, case("role up", Calls.WRITE, times=ONCE, written=Written.WHOLE))
    assert set(said) <= {REFUSED, ACKNOWLEDGED} and said.count(REFUSED) > 5
