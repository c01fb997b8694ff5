"""Operations on a running gateway: changes its configuration, reloads it, and reports the outcome."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import yaml

from tests.support.gateway import Patgate, complete
from tests.support.process import HANGS_SECONDS, wait_until

RELOADED = "reloaded"
REFUSED = "reload refused: the previous configuration stays in use"
COUNTED = {"path": "/counted/**", "upstream": "app", "access": "public"}
"""The route of ``settle_counts``, which nothing else may request."""

_ASKED: WeakKeyDictionary[Patgate, int] = WeakKeyDictionary()
"""How many requests each gateway has had on that route."""


def outcomes(node: Patgate) -> list[str]:
    """The outcome of each reload so far."""
    return [str(record["event"]) for record in node.records() if record["event"] in (RELOADED, REFUSED)]


def write(node: Patgate, **changes: Any) -> None:
    """Change top-level parts of the configuration file, in one step; keep the ports and the data directory."""
    node.config = complete({**node.config, **changes}, node.directory)
    draft = node.config_file.with_suffix(".new")
    draft.write_text(yaml.safe_dump(node.config, sort_keys=False))
    draft.replace(node.config_file)


def reload(node: Patgate, *, expect: str = RELOADED, seconds: float = HANGS_SECONDS) -> None:
    """Send SIGHUP and wait until the reload is reported to have the expected outcome."""
    before = len(outcomes(node))
    node.process.signal(signal.SIGHUP)
    wait_until(lambda: len(outcomes(node)) > before, "the end of a reload", seconds=seconds, process=node.process)
    assert outcomes(node)[before:] == [expect], node.process.tail()


def settle_spares(node: Patgate) -> None:
    """Wait until both spares have loaded, so that one replaces a death at once.

    A reload replaces them only some time after it is reported to have ended: two that had loaded before are the old
    ones.
    """

    def stand_by() -> bool:
        events = [(record["event"], record.get("child_pid")) for record in node.records()]
        last = max((place for place, (event, _) in enumerate(events) if event == RELOADED), default=0)
        loaded = {pid for event, pid in events[last:] if event == "spare stands by"}
        return len(loaded & {*node.spare_pids()}) == 2

    wait_until(stand_by, "both spares standing by", process=node.process)


def problems(node: Patgate) -> list[str]:
    """Every problem that a refused reload reported."""
    return [str(record["problem"]) for record in node.records() if record["event"] == "configuration problem"]


def metric(node: Patgate, name: str) -> float:
    """The value of a metric without labels."""
    lines = node.control("GET", "/metrics").body.decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def settle_counts(node: Patgate) -> None:
    """Wait until ``/metrics`` counts everything that has ended by now; the node needs the route ``COUNTED``.

    A worker reports all its counts together, some time after what it counts: a count that is read before that grows
    by itself, also during the next test.
    """
    for connection in node.connection_to_each_worker().values():
        with connection:
            assert connection.request("GET", "/counted/now").status == 200
        _ASKED[node] = _ASKED.get(node, 0) + 1
    wait_until(lambda: _counted(node) == _ASKED[node], "the counts of every worker", process=node.process)


def _counted(node: Patgate) -> float:
    page = node.control("GET", "/metrics").body.decode()
    series = rf'^patgate_requests_total\{{[^}}]*route="{re.escape(str(COUNTED["path"]))}"[^}}]*\}} (\S+)$'
    return sum(map(float, re.findall(series, page, re.MULTILINE)))


def routes(*paths: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list of routes to the upstream ``app``."""
    return [{"upstream": "app", **path} for path in paths]


def remove(directory: Path) -> None:
    """Remove a directory in which processes create files meanwhile."""
    while directory.exists():
        shutil.rmtree(directory, ignore_errors=True)
