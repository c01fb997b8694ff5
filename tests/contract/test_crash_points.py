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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.contract.crash_points import ACKNOWLEDGED, KILL, NONE, NOTHING, REFUSED, START, VERBS, WHOLE
from tests.support.dialects import ON_SQLITE

pytestmark = ON_SQLITE

EVERY_CALL = os.environ.get("PATGATE_TEST_EVERY_CALL", "") == "1"
EIO, ENOSPC = "error=EIO", "error=ENOSPC"
CLOSED, KILLED, FULL = "closed", "killed", "full"
"""The files that an authority starts on: after a stop; of a killed one; the same with a log that is nearly full."""
_HOUR: Final = 3600.0

Result = Mapping[str, Any]
"""A ``crash_points.Result`` as JSON."""


class Order(NamedTuple):
    """A change, the files, a fault, and at which of the calls: each ``every``-th, and those at the ends and syncs."""

    verb: str
    template: str
    fault: str
    every: int


SAMPLE: Final = (
    Order("role", CLOSED, KILL, 1),
    *(Order(verb, CLOSED, KILL, 14) for verb in VERBS if verb != "role"),
    Order("rotate", FULL, KILL, 16),
    Order("mint", CLOSED, EIO, 16),
    Order("revoke", CLOSED, ENOSPC, 16),
    Order("role", FULL, EIO, 24),
    Order(START, KILLED, KILL, 3),
    Order(START, KILLED, EIO, 3),
    Order(START, FULL, ENOSPC, 6),
)
ALL: Final = (
    *(
        Order(verb, template, fault, 1)
        for verb in VERBS
        for template in (CLOSED, FULL)
        for fault in (KILL, EIO, ENOSPC)
    ),
    *(Order(START, template, fault, 1) for template in (KILLED, FULL) for fault in (KILL, EIO, ENOSPC)),
)
ORDERS: Final = ALL if EVERY_CALL else SAMPLE


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    # Not tmp_path: the path of a unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def results(directory: Path) -> Mapping[Order, Sequence[Result]]:
    """The results of each order, from one process."""
    orders = [order._asdict() for order in ORDERS]
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.crash_points", str(directory), json.dumps(orders)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=_HOUR if EVERY_CALL else 280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for line in done.stdout.splitlines():
        result = json.loads(line)
        case = result["case"]
        found[case["verb"], case["template"], case["fault"]].append(result)
    assert not [key for key in found if key not in {order[:3] for order in ORDERS}]
    return {order: found[order[:3]] for order in ORDERS}


def hit(results: Sequence[Result]) -> Sequence[Result]:
    """Those that the fault has met: nearly all, because a repeated change makes nearly the same calls. No problems."""
    wrong = [result for result in results if result["problems"]]
    assert not wrong, "\n".join(str(result) for result in wrong)
    met = [result for result in results if result["call"] is not None]
    assert len(met) >= 0.9 * len(results) > 0
    return met


def chosen(*faults: str, start: bool = False) -> list[Order]:
    return [order for order in ORDERS if order.fault in faults and (order.verb == START) is start]


@pytest.mark.parametrize("order", chosen(KILL), ids=lambda order: "-".join(order[:3]))
def test_a_killed_change_is_stored_whole_or_not_at_all(results: Mapping[Order, Sequence[Result]], order: Order) -> None:
    """With a full log it is also the change after which SQLite copies the log into the database."""
    met = hit(results[order])
    assert {result["said"] for result in met} == {NOTHING}
    for result in met:
        assert result["found"] == (WHOLE if result["complete"] else NONE), result
    assert {result["found"] for result in met} == {WHOLE, NONE}
    files = {Path(result["call"]["path"]).name for result in met}
    assert ("patgate.db" in files) == (order.template == FULL)


@pytest.mark.parametrize("order", chosen(EIO, ENOSPC), ids=lambda order: "-".join(order[:3]))
def test_a_change_whose_disk_fails_is_refused_and_the_next_one_works(
    results: Mapping[Order, Sequence[Result]], order: Order, directory: Path
) -> None:
    """Except where the change is on disk already: in a copy of the log, and in SQLite's own sync of the directory."""
    met = hit(results[order])
    for result in met:
        stored = result["committed"] or result["call"]["path"] == str(directory / "data")
        expected = (ACKNOWLEDGED, WHOLE) if stored else (REFUSED, NONE)
        assert (result["said"], result["found"]) == expected, result
    assert REFUSED in {result["said"] for result in met}


def test_a_start_after_a_crash_may_crash_too(results: Mapping[Order, Sequence[Result]]) -> None:
    """What the killed authority had stored, the next one has, and no start loses it."""
    met = [result for order in chosen(KILL, start=True) for result in hit(results[order])]
    assert {result["call"]["name"] for result in met} >= {"pwrite64", "fdatasync", "fsync", "ftruncate"}


def test_a_start_on_a_failing_disk_serves_nothing_that_is_not_on_disk(
    results: Mapping[Order, Sequence[Result]],
) -> None:
    met = [result for order in chosen(EIO, start=True) for result in hit(results[order])]
    syncs = [result for result in met if "sync" in result["call"]["name"]]
    assert {result["call"]["name"] for result in syncs} == {"fdatasync", "fsync"}
    assert {result["said"] for result in syncs} == {REFUSED}
    full = [result for order in chosen(ENOSPC, start=True) for result in hit(results[order])]
    assert full, "a disk without room is a problem only once something must be written"
