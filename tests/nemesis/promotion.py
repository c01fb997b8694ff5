"""An asynchronous standby that lags is promoted while clients ask and change, and an operator accepts it.

What the standby lacked is lost by the failover and not by patgate: the operator has accepted that. Until the
acceptance no node may act against a change that was acknowledged. After it, all that the standby certainly had must be
there, and what is revoked must be refused.

After the acceptance a user may be suspended again, or have the lower role again, because only the change that ended it
was lost. So a denial is not judged then, also of a token that is made later. A change may have nothing to do then, so
only those that always do something must be in the audit log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.history.checker import Violation, violations
from tests.nemesis.cluster import Cluster
from tests.nemesis.failover import accept, why_unready
from tests.nemesis.faults import Database, Fault, Maker
from tests.nemesis.record import Record, Recorded
from tests.nemesis.run import Options, Report, audit_log, run
from tests.nemesis.verdict import Event, compare
from tests.support.postgres import Postgres
from tests.support.process import wait_until

CHANGERS: Final = 3
CLIENTS: Final = 2
LACKED: Final = 2 * CLIENTS * CHANGERS
"""How many changes the primary has that the standby lacks: so many that each changer has the answer to one of them."""
FENCED_SECONDS: Final = 2.5
"""How long the nodes stay fenced: longer than a lease."""
ONCE_SECONDS: Final = 1e9
"""The longest time to a second promotion, of which there must be none."""
MADE: Final = frozenset({"account.pat.mint", "account.pat.revoke"})
"""The actions of changes that always do something: a token is minted once, and revoked once."""
GONE: Final = ": 404 "
"""In a client's problem that a loss explains: its user or token is not there any more."""
SUSPENDED: Final = re.compile(r"^mint at n\d: 409 conflict")
"""The same where only the end of a suspension was lost: the user cannot be given a token."""


@dataclass(kw_only=True, slots=True)
class Moments:
    """When what happened, in nanoseconds of CLOCK_MONOTONIC."""

    complete: int = 0
    """What was acknowledged before it is on the standby."""
    accepted: int = 0
    """The operator began to accept the promoted database."""

    def doubts(self, change: Recorded) -> bool:
        """Whether the promoted database may lack the change."""
        return change.end > self.complete and change.start <= self.accepted


@dataclass(kw_only=True, slots=True)
class Promoted:
    """The judgement on a run."""

    report: Report
    moments: Moments
    violations: list[Violation] = field(default_factory=list)
    gone: int = 0
    """Acknowledged changes that the standby lacked, at least."""
    lost: list[str] = field(default_factory=list)
    """Acknowledged changes that it had, or that were made after the acceptance, and that are not in the audit log."""
    twice: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def passed(self) -> bool:
        return not (self.violations or self.lost or self.twice or self.problems or self.report.chain)


def asynchronous_under_load(directory: Path, seed: int, *, seconds: float = 16.0) -> Promoted:
    """Promote a lagging standby after a third of the time. Every node is fenced until the operator accepts it."""
    moments = Moments()
    cluster = Cluster(directory, nodes=3, proxied=0, standby="asynchronous", settings={"workers": 1})
    with cluster:

        def promote() -> None:
            moments.complete = time.monotonic_ns()
            cluster.standby.catch_up()
            cluster.standby.fall_behind()
            standby = _head(cluster, cluster.standby)
            wait_until(lambda: _head(cluster, cluster.server) >= standby + LACKED, "changes that the standby lacks")
            cluster.server.stop("kill")
            cluster.standby.promote()

        def settle() -> None:
            wait_until(lambda: all("store" in why_unready(node) for node in cluster.nodes), "every node fenced")
            moments.accepted = time.monotonic_ns()
            accept(cluster.nodes[0])

        def fail(_chance: object) -> Fault:
            return Database("promotion", FENCED_SECONDS, promote, settle)

        makers: dict[str, Maker] = {"promotion": fail}
        options = Options(
            seed=seed, clients=CLIENTS, changers=CHANGERS, connections=3, rate=600.0, decisions=1, changes=1,
            every_change=False, seconds=seconds, most_seconds=seconds, gap=(seconds / 3, ONCE_SECONDS), at_once=1,
        )  # fmt: skip
        report = run(options, cluster.nodes, makers, directory)
        events, _ = audit_log(cluster.nodes[0])
    records = [Record.read(directory, f"c{number}") for number in range(options.clients)]
    return judged(report, records, events, moments)


def _head(cluster: Cluster, server: Postgres) -> int:
    """The number of the newest change that a server has."""
    return int(server.psql("SELECT n FROM change_head", cluster.database))


def judged(report: Report, records: Sequence[Record], events: Sequence[Event], moments: Moments) -> Promoted:
    """Judge the run.

    Of the decisions that were asked for after ``accepted``, denials are left out, and those of each register that a
    change between ``complete`` and ``accepted`` concerns: whether the promoted database has the change is not known.
    """
    found = Promoted(report=report, moments=moments)
    everything = [change for record in records for change in record.changes]
    uncertain = [change for change in everything if moments.doubts(change)]
    keys = {(change.action, change.target) for change in everything if change.start <= moments.accepted}
    kept = [change for change in everything if change.end <= moments.complete]
    kept += [
        change
        for change in everything
        if change.start > moments.accepted and change.action in MADE and (change.action, change.target) not in keys
    ]
    found.lost = compare(kept, events)[0]
    found.twice = compare(everything, events)[1]
    found.gone = len(compare(uncertain, events)[0])
    for record in records:
        doubtful = {name for change in record.changes if moments.doubts(change) for name in change.registers}
        decisions = [
            decision
            for decision in record.judged()
            if decision.start <= moments.accepted or (decision.allowed and decision.token not in doubtful)
        ]
        changes = [change.change() for change in record.changes]
        found.violations += violations(decisions, changes, denied_at_first=record.unborn)
        resumed = any(change.kind == "suspend back" and moments.doubts(change) for change in record.changes)
        found.problems += [
            problem
            for problem in record.problems
            if not (uncertain and GONE in problem) and not (resumed and SUSPENDED.search(problem))
        ]
    return found
